"""The report of a run: one page that needs nothing else. And the pictures inside it."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from PIL import Image

from mbrl.errors import UserError
from mbrl.logger import Logger
from mbrl.pictures import SMALL, dream_gif, dream_plot, write_gif
from mbrl.report import write_report

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Text, ids and references of a page; fails where tags do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.links, self.words = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values[name] for name in ("src", "href", "xlink:href") if name in values]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


def frames(count, size=16):
    return np.random.default_rng(0).integers(0, 255, (count, size, size, 3), dtype=np.uint8)


@pytest.fixture
def run(tmp_path):
    """A finished run, in everything but the training."""
    directory = tmp_path / "runs" / "CartPole-v1" / "dreamer" / "seed0"
    with Logger(directory, sinks=()) as log:
        for step in (100, 200, 300):
            log.episode(step, step / 10, 10)
            losses = {"train/loss/dyn": 300.0 / step**2, "train/loss/rew": float("nan")}
            log.scalars(step, {**losses, "time/fps": 100.0, "time/updates": step, "time/seconds": step / 50})
            log.scalars(step, {"report/open_loop_error": [0.1, 0.2, float("nan")]})
        log.evaluation(200, "mode", [400.0, 410.0])
        log.evaluation(300, "mode", [31.0, 33.0])
        log.evaluation(300, "sample", [7.0, 7.0])
    config = {"env": "CartPole-v1", "agent": "dreamer", "seed": 0, "config": {"lr": 0.25, "text": "<b>&"}}
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    command = "/somewhere/bin/mbrl train CartPole-v1 --steps 300"
    status = {"state": "finished", "seconds": 90.0, "command": command, "continued_with": ["mbrl train --steps 310"]}
    (directory / "status.json").write_text(json.dumps({**status, "versions": {"torch": "9.8.7"}}))
    write_gif(directory / "dream.gif", frames(3), fps=5)
    return directory


def test_a_page_with_everything_in_it(run):
    path = write_report(run)
    assert path == run / "report.html"
    text = path.read_text()
    page = Page(text)
    headline = ["CartPole-v1, dreamer, seed 0", "32.0 ± 1.0", "2 episodes", "7.00 ± 0.00", "1m30"]
    commands = "mbrl train CartPole-v1 --steps 300\nmbrl train --steps 310"
    origin = [commands, "versions.torch", "9.8.7", "config.lr", "0.25", "<b>&"]
    for expected in [*headline, *origin, "prediction error"]:
        assert expected in page.text, expected
    assert "405" not in page.text and "somewhere" not in page.text  # no best score, no local path
    assert page.tags.count("svg") == 4


def test_the_page_needs_nothing_else(run):
    text = write_report(run).read_text()
    page = Page(text)
    outside = [link for link in page.links if not link.startswith(("#", "data:"))]
    assert not outside and len(page.links) > 1
    assert not re.search(r"https?://|@import|<script|<link", text)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_plots_follow_light_and_dark(run):
    text = write_report(run).read_text()
    assert "prefers-color-scheme: dark" in text and "stroke: var(--one)" in text
    assert not re.search(r"#0[1-6]0[1-6]0[1-6]", text)


def test_a_run_that_has_hardly_begun(tmp_path):
    (tmp_path / "status.json").write_text('{"state": "failed", "error": "UserError: <no> energy"}')
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "train/loss/dyn": null}\n{"step": 10, "tra')
    page = Page(write_report(tmp_path).read_text())
    for expected in ("not evaluated yet", "<no> energy", "5 environment steps"):
        assert expected in page.text, expected
    assert "svg" not in page.tags


def test_a_configuration_that_does_not_parse_is_shown_as_it_is(tmp_path):
    (tmp_path / "config.yaml").write_text("env: !!python/object:x.Y {a: [1")
    assert "!!python/object" in Page(write_report(tmp_path).read_text()).text


def test_one_episode_has_no_spread(tmp_path):
    with Logger(tmp_path, sinks=()) as log:
        log.evaluation(10, "sample", [5.0])
    text = Page(write_report(tmp_path).read_text()).text
    assert "over 1 episode at" in text and "±" not in text


def test_a_long_run_makes_no_large_page(tmp_path):
    with (tmp_path / "metrics.jsonl").open("w") as file:
        file.writelines(f'{{"step": {k}, "train/loss/dyn": {k % 7}}}\n' for k in range(20_000))
    assert write_report(tmp_path).stat().st_size < 100_000


def test_no_run(tmp_path):
    with pytest.raises(UserError, match="no run directory"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is not a run"):
        write_report(tmp_path)


def test_gif_keeps_its_frames_and_its_pace(tmp_path):
    path = write_gif(tmp_path / "deep" / "eval.gif", frames(7), fps=20)
    with Image.open(path) as gif:
        assert gif.n_frames == 7 and gif.size == (16, 16)
        assert gif.info["duration"] == 50 and gif.info["loop"] == 0
    assert [file.name for file in path.parent.iterdir()] == ["eval.gif"]
    with pytest.raises(ValueError, match="float64"):
        write_gif(path, np.zeros((2, 4, 4, 3)), fps=20)


def test_gif_too_large_drops_frames_and_keeps_its_pace(tmp_path):
    whole = write_gif(tmp_path / "whole.gif", frames(8), fps=20).stat().st_size
    with Image.open(write_gif(tmp_path / "small.gif", frames(8), fps=20, max_bytes=whole // 2 + 100)) as gif:
        assert gif.n_frames == 4 and gif.info["duration"] == 100


def test_dream_of_images(tmp_path):
    truth = np.full((3, 16, 16, 1), 200, np.uint8)
    truth += np.arange(3, dtype=np.uint8)[:, None, None, None]
    with Image.open(dream_gif(tmp_path / "dream.gif", truth, truth, context=1)) as gif:
        assert gif.n_frames == 3
        gif.seek(2)
        shown = np.asarray(gif.convert("RGB"))
    third = shown.shape[1] // 3
    assert shown[-8, 8].tolist() == shown[-8, third + 8].tolist() == [202] * 3
    assert abs(int(shown[-8, -8, 0]) - 127) <= 1  # grey: the dream is right


def test_dream_of_vectors(tmp_path):
    truth = np.cumsum(np.random.default_rng(0).normal(size=(20, 30)), 0)
    gif_path, png_path = dream_plot(tmp_path / "dream.gif", truth, truth + 0.5, context=5)
    assert gif_path.stat().st_size < SMALL and png_path.name == "dream.png"
    with Image.open(gif_path) as gif, Image.open(png_path) as png:
        assert gif.size == png.size and gif.n_frames >= 20
        gif.seek(0)
        first, whole = np.asarray(gif.convert("L"), float), np.asarray(png.convert("L"), float)
        gif.seek(gif.n_frames - 1)
        last = np.asarray(gif.convert("L"), float)
    assert np.abs(last - whole).mean() < np.abs(first - whole).mean() / 2  # the lines grow until all is there
