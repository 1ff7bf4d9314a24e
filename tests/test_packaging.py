"""Packaging: what Python imports is the checkout; the wheel carries everything and works from elsewhere."""

import importlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("mbrl", "agents", "envs", "scripts", "benchmarks")


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_resolve_inside_the_checkout(name: str) -> None:
    """`agents` and `envs` are common names: another distribution must not shadow them."""
    module = importlib.import_module(name)
    assert module.__file__ is not None
    assert Path(module.__file__).resolve().parent == (ROOT / name).resolve()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dist = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(dist)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [path] = dist.glob("*.whl")
    return path


def test_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {str(file.relative_to(ROOT)) for package in PACKAGES for file in (ROOT / package).rglob("*.py")}
    assert {name for name in files if not name.startswith("benchmarks/results/")} <= names
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert "benchmarks/reference/curves.csv" in names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert not [name for name in names if name.startswith("benchmarks/results/")]


def test_installed_wheel_works_from_elsewhere(wheel: Path, tmp_path: Path) -> None:
    """The wheel's own folder comes first on the path, before any editable install of the checkout."""
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(wheel)], check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for name in PACKAGES:
        where = run(sys.executable, "-c", f"import {name}; print({name}.__file__)").strip()
        assert Path(where).is_relative_to(site), where
    console = str(site / "bin" / "mbrl")
    assert "train" in run(sys.executable, console, "--help")
    assert "mbrl-toolkit 0.1.0" in run(sys.executable, console, "--version")
