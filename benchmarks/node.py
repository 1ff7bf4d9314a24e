"""Node: the end of a run that is on a node of a cluster; `benchmarks/cluster.py` holds the other one.

It trains in a directory of its own, and reads and writes files there for whoever asks. Imports nothing heavy:
every run has one, beside the process that trains.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from benchmarks.processes import PROGRAM, start
from mbrl.commit import git_commit

PIECE = 32 * 2**20
"""Bytes of a file that travel at once."""
Stamps = dict[str, tuple[int, int]]
"""Size and time of change of every file, by its path below the runs directory."""


def code() -> str:
    """What would train here."""
    return f"mbrl-toolkit {metadata.version('mbrl-toolkit')}, commit {git_commit()}"


def files(directory: Path) -> list[Path]:
    """All that is whole; temporary files and locks are left out."""
    found = []
    for folder, folders, names in os.walk(directory):  # passes over what is removed meanwhile
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".") and not name.endswith(".tmp")]
    return found


class Node:
    """An actor of Ray; one thread calls all of it, and the training ends with that thread."""

    def __init__(self) -> None:
        root = Path(tempfile.gettempdir()) / f"mbrl-cluster-{os.getuid()}"
        root.mkdir(mode=0o700, exist_ok=True)
        with (root / "lock").open("w") as lock:  # for those that come at the same time
            fcntl.flock(lock, fcntl.LOCK_EX)
            _sweep(root)
            self.directory = Path(tempfile.mkdtemp(dir=root))
            self.alive = (self.directory / ".alive").open("w")
            fcntl.flock(self.alive, fcntl.LOCK_EX)
        self.process: subprocess.Popen[bytes] | None = None

    def about(self) -> tuple[str, str, str]:
        """The node's name, its code, and the directory here that stands for the runs directory."""
        return platform.node(), code(), str(self.directory)

    def write(self, name: str, data: bytes, append: bool) -> None:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab" if append else "wb") as file:
            file.write(data)

    def read(self, name: str, offset: int) -> bytes | None:
        """At most ``PIECE`` bytes; None if the file is gone."""
        try:
            with (self.directory / name).open("rb") as file:
                file.seek(offset)
                return file.read(PIECE)
        except FileNotFoundError:
            return None

    def start(self, words: Sequence[str], log: str, program: Sequence[str] | None, gpus: float) -> None:
        """`mbrl` with ``words``, by the code that this actor is of unless there is a ``program``."""
        paths = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        if not gpus:  # Ray hides those that are not given out, but announces to leave this one case to us
            environment["CUDA_VISIBLE_DEVICES"] = ""
        self.process = start(words, self.directory / log, program or PROGRAM, environment)

    def look(self, seconds: float) -> tuple[int | None, Stamps]:
        """The exit code, for which it waits so long, and the files that were there then."""
        code = None
        if self.process is not None:
            try:
                code = self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                code = None
        stamps: Stamps = {}
        for path in files(self.directory):
            try:
                stat = path.stat()
            except FileNotFoundError:  # an old checkpoint, just removed
                continue
            stamps[str(path.relative_to(self.directory))] = (stat.st_size, stat.st_mtime_ns)
        return code, stamps

    def stop(self) -> None:
        """Ask the training to save and end."""
        if self.process is not None:
            self.process.terminate()

    def close(self) -> None:
        shutil.rmtree(self.directory)


def _sweep(root: Path) -> None:
    """Remove what nodes have left that were killed; what they had sent home is not lost."""
    for place in root.iterdir():
        if not place.is_dir():
            continue
        try:
            with (place / ".alive").open("w") as alive:
                fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(place, ignore_errors=True)  # its training may just be saving in vain
        except (BlockingIOError, FileNotFoundError):  # in use, or a neighbour has just removed it
            continue
