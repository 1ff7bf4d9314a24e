"""Cluster: the runs of a benchmark as actors of a Ray cluster whose nodes need not share a file system.

Ray finds a node with room for each run and tells when one is lost; `benchmarks/node.py` trains there. What the
training writes comes home into the runs directory every few seconds and at its end, checkpoints too, and is what
the run goes on from on whichever node, or without a cluster. The runs directory here is all that counts.
"""

from __future__ import annotations

import logging
import math
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import node, runner
from benchmarks.node import Node, Stamps
from benchmarks.runner import Board, Lost, Outcome, Run, carry_out
from mbrl.errors import UserError
from mbrl.run import only_writer

CPUS = 1
"""Of each run, which has one thread."""
LOSSES = 3
"""So many nodes may be lost under a run before that counts as its own death."""
LOOK = 1.0
"""Seconds that a node waits for the end of its training before it answers anyhow."""
SYNC = 10.0
"""Seconds between two times that files come home."""
REACH = 5.0
"""Seconds to wait for the cluster's address to answer."""


class Cluster:
    """A connection to an existing cluster; use as a context.

    Raises:
        UserError: Ray is not installed, or no cluster is there.
    """

    def __init__(self, address: str, gpus: float = 0.0) -> None:
        """``gpus`` of each run, may be a fraction."""
        try:
            self.ray: Any = import_module("ray")
        except ImportError as error:
            raise UserError(f"--cluster needs Ray ({error}): pip install 'mbrl-toolkit[ray]'") from error
        self.address, self.gpus = address, gpus
        _reach(address)
        try:
            self.ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (Exception, SystemExit) as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"cannot join the Ray cluster at {address}: {text}. HOST:PORT wants this machine to be a node of the "
                "cluster (ray start --address=HOST:PORT --num-cpus=0 makes it one); from elsewhere use ray://HOST:10001"
            ) from error

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *error: object) -> None:
        self.ray.shutdown()

    def room(self) -> int:
        """How many runs fit at a time if nobody else computes."""
        nodes = [found["Resources"] for found in self.ray.nodes() if found["Alive"]]
        gpus = [there.get("GPU", 0) / self.gpus if self.gpus else math.inf for there in nodes]
        return int(sum(min(there.get("CPU", 0) // CPUS, fit // 1) for there, fit in zip(nodes, gpus)))


def execute(
    runs: Sequence[Run], jobs: int | None, board: Board, cluster: Cluster, program: Sequence[str] | None = None
) -> Outcome:
    """As `runner.execute`, on a cluster; ``jobs``: None for as many as it has room for."""
    if not cluster.room():
        board.note(f"no node of the cluster has {CPUS} CPU and {cluster.gpus:g} GPUs: the runs wait until one joins")
    places = _Places(cluster, len(runs) if jobs is None else jobs, board, program)
    return carry_out(runs, places.jobs, board, places.launch)


def _reach(address: str) -> None:
    """Ray itself would try for minutes.

    Raises:
        UserError: nobody answers.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        raise UserError(f"'{address}' is no address of a Ray cluster: HOST:6379 (on a node of it) or ray://HOST:10001")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({error}); `ray status --address={host}:{port}` on a node tells "
            "whether it runs, `ray start --head` starts one"
        ) from error


class _Places:
    """Asks the cluster for a place for each run, at most ``jobs`` at a time."""

    def __init__(self, cluster: Cluster, jobs: int, board: Board, program: Sequence[str] | None) -> None:
        self.ray, self.gpus, self.jobs, self.board, self.program = cluster.ray, cluster.gpus, jobs, board, program
        # A lost node is not made up for by Ray, which would not know what the run has sent home since.
        self.kind = cluster.ray.remote(num_cpus=CPUS, num_gpus=cluster.gpus, max_restarts=0)(Node)
        self.asked: dict[Any, Any] = {}
        """Places that are not there yet: what they will say about themselves, and the actor."""
        self.training: set[Run] = set()
        self.losses: dict[Run, int] = {}
        self.code = node.code()
        self.compared: set[str] = set()

    def launch(self, run: Run, waiting: int) -> _Training | None:
        """As soon as there is a place; Ray knows of all that will be needed, for a cluster may grow."""
        wanted = min(waiting, self.jobs - len(self.training))
        try:
            while len(self.asked) < wanted:
                actor = self.kind.remote()
                self.asked[actor.about.remote()] = actor
            while len(self.asked) > wanted:
                self.ray.kill(self.asked.popitem()[1])
            there, _ = self.ray.wait(list(self.asked), timeout=0)
            if not there:
                return None
            actor = self.asked.pop(there[0])
            host, code, directory = self.ray.get(there[0])
            self._compare(host, code)
            return _Training(self, run, actor, host, directory)
        except (self.ray.exceptions.RayActorError, ImportError) as error:
            if isinstance(error, ImportError) or "creation task" in str(error):
                raise UserError(f"a node of the cluster cannot run mbrl ({_reason(error)}). {INSTALL}") from error
            self.board.note(f"lost      {run.name}  before it began: {_reason(error)}; it is handed out again")
            return None

    def _compare(self, host: str, code: str) -> None:
        if code != self.code and host not in self.compared:
            self.board.note(f"warning: {host} has {code}; here is {self.code}. {INSTALL}")
        self.compared.add(host)


INSTALL = "Install the same commit of mbrl-toolkit on every node"


class _Training:
    """One run on a node, for the runner as if it were a process here."""

    def __init__(self, places: _Places, run: Run, actor: Any, host: str, directory: str) -> None:
        self.places, self.ray, self.run, self.actor, self.host = places, places.ray, run, actor, host
        self.code: int | None = None
        self.synced = time.monotonic()
        self.resources = ExitStack()
        self.resources.enter_context(only_writer(run.directory))  # here nobody else trains it
        try:
            for path in [*node.files(run.directory), *([run.log] if run.log.exists() else [])]:
                self._send(path)
            _, self.known = self.ray.get(actor.look.remote(0))
            there = replace(run, runs_dir=Path(directory))
            log = str(run.log.relative_to(run.runs_dir))
            self.ray.get(actor.start.remote(there.words, log, places.program, places.gpus))
        except BaseException:
            self.resources.close()
            raise
        self.news = actor.look.remote(LOOK)
        places.training.add(run)

    def poll(self) -> int | None:
        if self.code is not None or not self.ray.wait([self.news], timeout=0)[0]:
            return self.code
        try:
            code, stamps = self.ray.get(self.news)
            self.news = self.actor.look.remote(LOOK)
            if code is not None or time.monotonic() - self.synced > SYNC:
                whole = self._fetch(stamps)
                self.synced = time.monotonic()
                if code is not None and whole:
                    self.ray.wait([self.actor.close.remote()], timeout=REACH)
                    self._leave(code)
        except self.ray.exceptions.RayActorError as error:
            self._lose(error)
        return self.code

    def wait(self) -> int:
        while self.code is None:
            try:
                self.poll()
            except Lost:
                break
            time.sleep(runner.POLL)
        return -signal.SIGKILL if self.code is None else self.code

    def terminate(self) -> None:
        self.actor.stop.remote()

    def kill(self) -> None:
        self._leave(-signal.SIGKILL)

    def _leave(self, code: int) -> None:
        """Give the place back."""
        self.ray.kill(self.actor)
        self.code = code
        self.places.training.discard(self.run)
        self.resources.close()

    def _lose(self, error: Exception) -> None:
        self._leave(-signal.SIGKILL)
        text = f"{self.host} was lost: {_reason(error)}"
        losses = self.places.losses[self.run] = self.places.losses.get(self.run, 0) + 1
        if losses <= LOSSES:
            raise Lost(text)
        with self.run.log.open("a", encoding="utf-8") as log:
            log.write(f"{text}, and {losses - 1} nodes before\n")

    # ---- files ---------------------------------------------------------------------------------

    def _send(self, path: Path) -> None:
        name = str(path.relative_to(self.run.runs_dir))
        with path.open("rb") as file:
            data, append = file.read(node.PIECE), False
            while data or not append:
                self.ray.get(self.actor.write.remote(name, data, append))
                data, append = file.read(node.PIECE), True

    def _fetch(self, stamps: Stamps) -> bool:
        """What has changed comes home, and what is gone there goes here; whether that was all.

        At any moment what is here can be gone on from: an old checkpoint goes when the new one is whole.
        """
        for name in sorted(stamps, key=_turn):
            if self.known.get(name) != stamps[name]:
                if not self._get(self.run.runs_dir / name, name):
                    return False
                self.known[name] = stamps[name]
        for name in set(self.known) - set(stamps):
            del self.known[name]
            _remove(self.run.runs_dir / name)
        return True

    def _get(self, path: Path, name: str) -> bool:
        """Whole, or not at all where it is gone in the meantime."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("wb") as file:
            data = self.ray.get(self.actor.read.remote(name, 0))
            while data:
                file.write(data)
                data = self.ray.get(self.actor.read.remote(name, file.tell())) if len(data) == node.PIECE else b""
        if data is None:
            temporary.unlink()
            return False
        temporary.replace(path)
        return True


def _turn(name: str) -> tuple[int, str]:
    """What others rely on comes first: chunks before checkpoints, their manifests later, 'finished' last of all."""
    path = Path(name)
    last = {"manifest.json": 2, "status.json": 3}.get(path.name, 1)
    return (0 if "replay" in path.parts else last), name


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    if not any(path.parent.iterdir()):
        path.parent.rmdir()


def _reason(error: Exception) -> str:
    """The last line of what may be a remote traceback."""
    return [line for line in str(error).splitlines() if line.strip()][-1].strip().rstrip(".")
