"""Randomness: the global generators of torch, numpy and Python, saved, restored and set apart."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  environments may draw from it
    random.seed(seed)


def get_randomness() -> dict[str, Any]:
    """The state of every global generator."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    numpy = np.random.get_state()  # noqa: NPY002
    return {"torch": torch.get_rng_state(), "cuda": cuda, "numpy": numpy, "python": random.getstate()}


def set_randomness(state: dict[str, Any]) -> None:
    """Put back what ``get_randomness`` gave; another number of GPUs leaves theirs as they are."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(state["python"])


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Everything inside draws from generators seeded with ``seed``; outside, nothing was ever drawn."""
    before = get_randomness()
    seed_everything(seed)
    try:
        yield
    finally:
        set_randomness(before)
