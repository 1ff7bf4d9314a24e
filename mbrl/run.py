"""What a run directory says about itself: status.json, always whole, and a lock against a second writer.

status.json tells how far the run is, whether it still runs, and on what it was made.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import resource
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch

from mbrl.commit import git_commit
from mbrl.errors import UserError

RunState = Literal["running", "finished", "interrupted", "failed"]
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
PACKAGES = ("mbrl-toolkit", "torch", "numpy", "gymnasium", "mujoco", "dm-control", "stable-baselines3", "sb3-contrib")


def write_status(directory: Path, state: RunState, **values: Any) -> None:
    """Update status.json: ``values`` (step, seconds, ...) replace those of the same name."""
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    status = {**read_status(directory), "state": state, "time": now, **values}
    write_atomically(directory / "status.json", json.dumps(status, indent=1, default=str))


def read_status(directory: Path) -> dict[str, Any]:
    """{} where there is none yet."""
    try:
        return dict(json.loads((directory / "status.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def circumstances() -> dict[str, Any]:
    """What makes this run: versions, git commit, machine."""
    return {
        "pid": os.getpid(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "git": git_commit(),
        "machine": {
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def commands(directory: Path, resumed: bool) -> dict[str, Any]:
    """The command that began the run, and those that went on with it and were others."""
    now, before = command_line(), read_status(directory) if resumed else {}
    first, later = before.get("command", now), list(before.get("continued_with", []))
    return {"command": first, "continued_with": later + [now] * (now != [first, *later][-1])}


def command_line() -> str:
    """How this process was started, without where on this machine its program lies."""
    name = Path(sys.argv[0]).name
    return shlex.join(["mbrl" if name == "main.py" else name, *sys.argv[1:]])


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextmanager
def only_writer(directory: Path) -> Iterator[None]:
    """Two processes that train in one directory would ruin it. The same process may nest this.

    Raises:
        UserError: another process is there already.
    """
    directory.mkdir(parents=True, exist_ok=True)
    place = directory.resolve()
    if place in _held:
        yield
        return
    with (directory / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            pid = lock.read() or "unknown"
            raise UserError(
                f"another process (pid {pid}) is training in {directory}; wait for it, stop it with "
                f"'kill -TERM {pid}', or choose another --seed"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        _held.add(place)
        try:
            yield
        finally:
            _held.discard(place)


def is_being_written(directory: Path) -> bool:
    """Whether another process is training there."""
    try:
        with (directory / ".lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def peak_memory_mb() -> float:
    """The largest resident size that this process has had, without its children, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


_held: set[Path] = set()


@contextmanager
def readable_disk_errors(directory: Path) -> Iterator[None]:
    """Raises:
    UserError: instead of the OSError of a disk that is full, read-only or not ours.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise UserError(
            f"cannot write {error.filename or directory}: {error.strerror}. The last checkpoint is whole. "
            "Free some space or make the directory writable; then the same command continues the run"
        ) from error


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
