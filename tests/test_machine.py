"""What is set in the process before training begins; each test in a process of its own."""

import os
import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


def printed(script: str) -> list[str]:
    """The words that a script prints in a fresh process, whose threads nobody has chosen."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_one_thread_unless_told_otherwise() -> None:
    script = "import torch; from scripts.machine import set_threads; print(set_threads(), set_threads(2))"
    assert printed(script) == ["1", "2"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told anything")
def test_freed_memory_is_kept() -> None:
    """Else the kernel has to map the same pages again and again."""
    script = """
        import resource, torch
        from scripts.machine import keep_freed_memory

        def faults():
            begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(10):
                [torch.zeros(2**21) for _ in range(8)]  # 8 MiB each
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begin

        before = faults()
        keep_freed_memory()
        faults()
        print(before, faults())
    """
    before, after = map(int, printed(textwrap.dedent(script)))
    assert after < before / 10


def test_a_replay_takes_no_memory_before_it_is_filled() -> None:
    """Images for a million steps are 12 GB; an allocator that keeps freed memory would write zeros to all of it."""
    script = """
        import resource, sys, numpy as np
        from gymnasium import spaces
        from mbrl.replay import Replay, ReplayConfig
        from scripts.machine import keep_freed_memory

        keep_freed_memory()
        space = spaces.Dict({"image": spaces.Box(0, 255, (64, 64, 3), np.uint8)})
        replay = Replay(space, 6, 1, {}, ReplayConfig(200_000))
        unit = 1 if sys.platform == "darwin" else 1024
        print(replay.capacity, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    """
    capacity, memory = map(int, printed(textwrap.dedent(script)))
    assert capacity > 190_000 and memory < 1e9
