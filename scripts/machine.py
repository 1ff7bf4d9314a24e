"""The machine: cores, threads, memory, device. What training plans with and `mbrl doctor` prints."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
from pathlib import Path


def physical_cores() -> int:
    """Cores this process may use, hyper-threads not counted: those add nothing to matrix products."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, _container_cores(), _cores_in_cpuinfo()))


def idle_cores() -> int:
    """Cores that nobody has used in the last minute; at least one."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1, physical_cores() - round(load))


def _container_cores() -> int:
    """The container's share of the machine (cgroup v2), which `os.cpu_count` does not know."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return sys.maxsize if quota == "max" else math.ceil(int(quota) / int(period))
    except (OSError, ValueError):
        return sys.maxsize


def _cores_in_cpuinfo() -> int:
    try:
        blocks = Path("/proc/cpuinfo").read_text().strip().split("\n\n")
    except OSError:
        return sys.maxsize
    cores = set()
    for block in blocks:
        fields = dict(line.split(":", 1) for line in block.splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        if "core id" in fields:
            cores.add((fields.get("physical id"), fields["core id"]))
    return len(cores) or sys.maxsize


def set_threads(wanted: int | None = None) -> int:
    """As many threads as wanted, else as OMP_NUM_THREADS says, else one; returns the number.

    One, because small models gain little from more, and lose an order of magnitude to threads that wait
    for each other where the machine has other work too.
    """
    import torch

    if wanted is not None or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(wanted or 1)
    return torch.get_num_threads()


def keep_freed_memory() -> None:
    """Let the allocator keep what tensors free, on huge pages, where it is glibc's.

    By default it hands large blocks back, and every page that is asked for again costs a page fault.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_max, huge_page, madv_hugepage = -1, -4, 2**21, 14  # of malloc.h and mman.h
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, -1)
    # Addresses, not memory: the heap grows by them, and takes memory where it is first written to.
    size = 4 * 2**30
    block = libc.malloc(size)
    if block is None:
        return
    first = -(-block // huge_page) * huge_page
    libc.madvise(first, size - huge_page, madv_hugepage)  # where the kernel has none, nothing changes
    libc.free(block)


def free_memory() -> int | None:
    """Bytes that can still be taken without swapping, the container's limit included; None if unknown."""
    free = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free.append(int(line.split()[1]) * 1024)
        group = Path("/sys/fs/cgroup")
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # not Linux, or no limit
    return min(free) if free else None


def choose_device(name: str) -> str:
    """`auto` is CUDA where PyTorch sees it, else the CPU.

    Raises:
        UserError: CUDA was asked for by name and is not there, or what was asked for is neither CUDA nor the CPU.
    """
    import torch

    from mbrl.errors import UserError

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not name.startswith("cuda"):
        raise UserError(f"--device {name}: use auto, cpu or cuda (the second GPU is cuda:1)")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"--device {name}: PyTorch {torch.__version__} sees no CUDA device; use --device cpu, "
            "or install a CUDA build of torch. `mbrl doctor` shows what is there"
        )
    return name
