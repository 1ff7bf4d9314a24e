"""What a check of an environment has to say, and whatever the environment raises, said in the same form."""

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.errors import EnvError

Watch = Callable[[str], None]

RETURNS = "reset() returns (obs, info); step() returns (obs, float(reward), terminated, truncated, info)"
SPACE = "correct the environment's observation_space, or what reset() and step() return"


@dataclass(frozen=True)
class Finding:
    severity: str
    """error: training would fail or be ruined; warning: it would be worse than need be; note: good to know."""
    check: str
    """Which check found it."""
    what: str
    mend: str
    """One line that mends it: of code, or a command."""


class Broken(Exception):
    """The environment cannot be looked at any further, and why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.what)
        self.finding = finding


@contextmanager
def calling(
    watch: Watch, check: str, where: str, readable: tuple[type[Exception], ...] = (EnvError,), severity: str = "error"
) -> Iterator[None]:
    """Whatever is raised inside is the environment's fault.

    Args:
        where: what is done to it.
        readable: errors that say themselves what to do.
        severity: of others.

    Raises:
        Broken: in place of it.
    """
    watch(where)
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, readable):
            raise Broken(explained(check, where, str(error))) from error
        raise Broken(_raised(check, where, error, severity)) from error


def explained(check: str, where: str, message: str) -> Finding:
    """An error whose message says what, why and, in its last sentence, how."""
    message = re.sub(r"\s+", " ", message)
    for end in (". ", "; "):
        what, _, mend = message.rpartition(end)
        if what:
            return Finding("error", check, f"{where}: {what}", mend)
    return Finding("error", check, f"{where}: {message}", "as the message says")


def _raised(check: str, where: str, error: BaseException, severity: str) -> Finding:
    frames = traceback.extract_tb(error.__traceback__)
    between = (str(Path(__file__).parent), gymnasium.__path__[0])
    own = [frame for frame in frames if not frame.filename.startswith(between)]
    tail = "".join(traceback.format_list(own[-2:]) + traceback.format_exception_only(error)).rstrip()
    mend = f"correct {own[-1].filename}:{own[-1].lineno}, in {own[-1].name}" if own else RETURNS
    survived = " (training restarts an environment that breaks seldom)" if severity == "warning" else ""
    return Finding(severity, check, f"{where} raised {type(error).__name__}{survived}\n{tail}", mend)


def leaves(
    space: spaces.Space[Any], path: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], spaces.Space[Any]]]:
    """(path into the observation, space) of everything that is no Dict or Tuple."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for part, sub in parts:
            yield from leaves(sub, (*path, part))
    else:
        yield path, space


def key_of(path: tuple[str | int, ...]) -> str:
    return "/".join(map(str, path)) or "observation"


def short(value: Any) -> str:
    text = np.array2string(value, precision=3, threshold=8) if isinstance(value, np.ndarray) else str(value)
    return re.sub(r"\s+", " ", text if len(text) <= 100 else f"{text[:100]} ...")
