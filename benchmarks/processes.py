"""Processes: a training as a process of its own, with a log, that ends with whoever started it.

Imports nothing but the standard library: on the nodes of a cluster it is loaded once per run.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PROGRAM = (sys.executable, "-m", "scripts.main")
"""What stands for `mbrl`."""


def start(
    words: Sequence[str], log: Path, program: Sequence[str] = PROGRAM, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """`mbrl` with ``words``, writing to ``log``; on Linux it ends as soon as the thread that called this does.

    A session of its own keeps the terminal's Ctrl-C away from it: the runner passes it on.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ mbrl {' '.join(words)}\n")
        file.flush()
        return subprocess.Popen(
            [*program, *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {}), "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            preexec_fn=_end_with(os.getpid()) if _LIBC is not None else None,
        )


_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def _end_with(parent: int) -> Any:
    """For the child: SIGTERM, at which a training saves, as soon as the parent is gone."""

    def prepare() -> None:
        assert _LIBC is not None
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # gone before the line above
            os._exit(1)

    return prepare
