"""Tests run on one thread: small models are faster so, and results do not depend on the machine."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read once, when torch is first imported

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
