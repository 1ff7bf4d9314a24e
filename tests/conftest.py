"""Tests run on one thread: small models are faster so, and results do not depend on the machine.

One short run of the debug preset is shared by the tests that need a trained agent.
"""

import os
import shutil
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read once, when torch is first imported

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the debug preset: its runs directory."""
    from scripts.main import main

    runs = tmp_path_factory.mktemp("runs")
    assert main(["train", "CartPole-v1", "--steps", "300", "--runs-dir", str(runs), "--preset", "debug"]) == 0
    return runs


@pytest.fixture
def run_copy(trained: Path, tmp_path: Path) -> Path:
    """The same run, to be spoilt."""
    shutil.copytree(trained, tmp_path / "runs")
    return tmp_path / "runs"
