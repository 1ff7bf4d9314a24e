"""Twelve awkward environments: check-env says what is odd, and training works or says why not."""

from __future__ import annotations

import json
from pathlib import Path

import awkward
import pytest

from scripts import check_env
from scripts.main import main

FILE = Path(awkward.__file__)
ODD = {
    "UnboundedBox": "action-bounds",
    "OneStep": "episode-length",
    "NeverEnding": "time-limit",
    "HugeRewards": "reward-scale",
    "TinyRewards": "reward-scale",
    "SometimesNaN": "observation-finite",
    "SometimesRaises": "step",
}
"""What check-env must notice; the others are as good as any environment."""


@pytest.mark.parametrize("env", [env.__name__ for env in awkward.ALL])
def test_check_env_and_training(env: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{FILE}:{env}"
    report = check_env.examine(check_env.parse([name, "--preset", "debug", "--steps", "600"]))
    assert report["ok"], report["findings"]
    found = {finding["check"] for finding in report["findings"] if finding["severity"] != "note"} - {"gymnasium"}
    assert found == ({ODD[env]} if env in ODD else set()), report["findings"]

    line = ["train", name, "--preset", "debug", "--no-pictures", "--training.final-episodes", "1", "--steps", "300"]
    assert main([*line, "--runs-dir", str(tmp_path)]) == 0, capsys.readouterr()
    rows = [json.loads(text) for text in next(tmp_path.rglob("metrics.jsonl")).read_text().splitlines()]
    assert rows[-1]["train/loss/total"] < 1e4
    assert ("had not ended after 200" in capsys.readouterr().out) == (env == "NeverEnding")
