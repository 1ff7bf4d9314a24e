"""One environment, in this process (Local) or in one of its own (Process): told what to do, answering each command.

An answer is what was asked for, or a Fault: what the environment raised, NaN or infinity, the end of the process.
A hanging process is the business of who waits for it.
"""

import os
import pickle
import select
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector.utils import CloudpickleWrapper

from envs.errors import EnvError
from envs.wrappers import Env

FRAMES = 4  # of a traceback, the innermost ones

Make = Callable[[], Env]


@dataclass(frozen=True)
class Fault:
    """Why an environment did not answer as it should."""

    text: str
    """The error with the innermost lines of its traceback."""
    error: Exception | None = None
    """What it raised, where that can be sent from process to process."""


class Local:
    """An environment in this process."""

    running = False
    fresh = True
    """Never reset."""

    def __init__(self, make: Make) -> None:
        self.make, self.starts = make, 0
        self.env: Env | None = None

    def start(self) -> None:
        """Make the environment; `receive` gives its description."""
        self.starts += 1
        self.running = self.fresh = True
        self.env, self._answer = _make(self.make)

    def send(self, command: str, argument: Any) -> None:
        self.fresh = self.fresh and command != "reset"
        self._answer = _obey(self.env, command, argument)

    def poll(self, timeout: float) -> bool:
        return True

    def receive(self) -> Any:
        return self._answer

    def memory(self) -> float | None:
        return None

    def ask_to_close(self) -> None:
        pass

    def close(self, timeout: float) -> None:
        self.kill()

    def kill(self) -> None:
        self.running = False
        env, self.env = self.env, None
        if env is not None:
            try:
                env.close()
            except Exception as error:  # it is given up in any case
                gymnasium.logger.warn(f"An environment could not be closed: {_summary(error)}")


class Process:
    """An environment in a process of its own, which ends with its parent, however that ends."""

    running = False
    fresh = True
    """Never reset."""

    def __init__(self, make: Make) -> None:
        self.make, self.starts = make, 0

    def start(self) -> None:
        """Start the process; `receive` gives the environment's description."""
        self.starts += 1
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._poller = select.poll()
        self._poller.register(self._pipe.fileno(), select.POLLIN)
        arguments = (CloudpickleWrapper(self.make), theirs)
        self._process = context.Process(target=_work, args=arguments, name="environment", daemon=True)
        with _deaf_to_interrupts():
            self._process.start()
        theirs.close()
        self.running = self.fresh = True
        self._described = self._has_obs = False

    def send(self, command: str, argument: Any) -> None:
        self.fresh = self.fresh and command != "reset"
        self._has_obs = command in ("step", "reset")
        with suppress(OSError):  # dead: `receive` finds out
            self._pipe.send_bytes(pickle.dumps((command, argument), pickle.HIGHEST_PROTOCOL))

    def poll(self, timeout: float) -> bool:
        """Whether there is an answer, or the end."""
        return bool(self._poller.poll(1000 * timeout))

    def receive(self) -> Any:
        try:
            answer = pickle.loads(self._pipe.recv_bytes())
            if self._has_obs and not isinstance(answer, Fault):
                answer = _full(answer)
        except (EOFError, OSError):
            return Fault(self._death())
        except Exception as error:  # of a class that is unknown here
            return Fault(f"an answer that cannot be read: {_summary(error)}")
        self._described = True
        return answer

    def memory(self) -> float | None:
        """MB."""
        try:
            pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        except (OSError, ValueError, IndexError):  # not Linux, or just ended
            return None
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def ask_to_close(self) -> None:
        if self.running:
            self.send("close", None)

    def close(self, timeout: float) -> None:
        """Wait for the environment to close; kill it if it takes longer."""
        if self.running:
            connection.wait([self._process.sentinel], timeout)
            self.kill()

    def kill(self) -> None:
        """End the process and those that it started, if it has not ended."""
        if not self.running:
            return
        self.running = False
        self._pipe.close()
        try:
            os.killpg(self._process.pid or 0, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # too young to lead a group of its own, or long gone
            self._process.kill()
        self._process.join()

    def _death(self) -> str:
        connection.wait([self._process.sentinel], 1.0)
        self.kill()
        code = self._process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        text = f"its worker process ended by itself ({how})"
        if code == -signal.SIGKILL:
            return f"{text}; the system may have killed it for want of memory"
        if not self._described:
            return (
                f"{text} while it started; its own message is above. If this is a script of yours, put what it runs "
                "under: if __name__ == '__main__':"
            )
        return text


def _work(make: CloudpickleWrapper, pipe: connection.Connection) -> None:
    """A worker process: one answer to each command, until it is told to close or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setpgrp()  # whoever signals the parent's group leaves us alone
    threading.Thread(target=_follow_parent, daemon=True).start()
    env, answer = _make(make)
    while True:
        pipe.send_bytes(_pickled(answer))
        try:
            command, argument = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        if command == "close":
            break
        answer = _obey(env, command, argument)
        if command in ("step", "reset") and not isinstance(answer, Fault):
            answer = _lean(answer)
    if env is not None:
        env.close()


def _follow_parent() -> None:
    """Also in the middle of an endless step."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)


def _lean(value: Any) -> Any:
    """A step's or reset's answer with plain arrays as bytes, which are pickled twenty times as fast."""
    arrays = {key: np.asarray(array) for key, array in value[0].items()}
    obs = {key: (array.dtype.str, array.shape, array.tobytes()) for key, array in arrays.items()}
    return (obs, *value[1:])


def _full(value: Any) -> Any:
    """The inverse of `_lean`."""
    obs = {key: np.frombuffer(data, dtype).reshape(shape) for key, (dtype, shape, data) in value[0].items()}
    return (obs, *value[1:])


def _pickled(answer: Any) -> bytes:
    if isinstance(answer, Fault):
        answer = Fault(answer.text, _portable(answer.error))
    try:
        return pickle.dumps(answer, pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # pickle raises anything
        return pickle.dumps(Fault(f"an answer that cannot be sent: {_summary(error)}"))


def _portable(error: Exception | None) -> Exception | None:
    """The same error without what another process may not know."""
    if error is not None and type(error).__module__ in ("builtins", EnvError.__module__):
        with suppress(TypeError):
            return type(error)(str(error))
    return None


def _make(make: Any) -> tuple[Env | None, Any]:
    """The environment and its description, or None and a Fault."""
    try:
        env = make()
        return env, (env.observation_space, env.action_space, dict(env.metadata), env.render_mode)
    except Exception as error:
        return None, _fault(error)


def _obey(env: Any, command: str, argument: Any) -> Any:
    """The answer to a command, or a Fault."""
    try:
        if command == "step":
            result = env.step(argument)
            wrong = _not_finite(result[0], result[1])
            return result if wrong is None else Fault(wrong)
        if command == "reset":
            seed, options = argument
            result = env.reset(seed=seed, options=options)
            wrong = _not_finite(result[0])
            return result if wrong is None else Fault(wrong)
        if command == "set":
            return env.set_wrapper_attr(*argument)
        name, args, kwargs = argument
        attribute = env.get_wrapper_attr(name)
        return attribute(*args, **kwargs) if callable(attribute) else attribute
    except Exception as error:
        return _fault(error)


def _not_finite(obs: dict[str, Any], reward: float = 0.0) -> str | None:
    for key, value in obs.items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and not np.isfinite(value).all():
            return f"the observation {key!r} is {value[~np.isfinite(value)].flat[0]}"
    return None if np.isfinite(reward) else f"the reward is {reward}"


def _fault(error: Exception) -> Fault:
    """With the innermost frames; where an error was raised from another, those of the other."""
    lines, root = [_summary(error)], error
    while isinstance(root.__cause__, Exception):
        root = root.__cause__
    if root is not error:
        lines.append(f"which came from {_summary(root)}")
    frames = [frame for frame in traceback.extract_tb(root.__traceback__) if frame.filename != __file__]
    for frame in frames[-FRAMES:]:
        lines.append(f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}: {frame.line}')
    return Fault("\n".join(lines), error)


def _summary(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes started meanwhile ignore Ctrl-C: whoever owns them decides when they end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
