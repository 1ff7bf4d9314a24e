"""Logger: what a run writes down. One JSON line per log first, dashboards after.

``metrics.jsonl``  every scalar: {"step": 2000, "train/loss/dyn": 1.2, ...}; curves over a horizon as lists.
``scores.jsonl``   training episodes, in the form Dreamer's own plotting reads
                   ({"step", "episode/score", "episode/length"}), and evaluations
                   ({"step", "mode", "mean", "std", "episodes", "returns", "wall", "commit"}).

The x axis is environment steps, action repeat included. Every line is valid JSON and is flushed at
once; NaN and infinity become null. A resumed run cuts what had run ahead of its checkpoint.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO

import numpy as np

from mbrl.errors import UserError

METRICS, SCORES = FILES = ("metrics.jsonl", "scores.jsonl")
CURVE_POINTS = (1, 5, 15, 50)
"""The places (from 1) at which dashboards, which know scalars only, see a list."""


class Sink(Protocol):
    """A dashboard: takes the scalars that metrics.jsonl already holds."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Logger:
    """Writes a run's metrics and scores. ``resume_step=None`` starts a new run in ``directory``.

    Nothing there is touched before ``open``, or the first line: the run may yet be refused. Every evaluation names the
    ``commit``, where there is one: a run may go on with another.
    """

    def __init__(
        self,
        directory: Path | str,
        resume_step: int | None = None,
        *,
        wall_offset: float = 0.0,
        sinks: Sequence[str] = ("tensorboard",),
        episode_window: int = 100,
        commit: str | None = None,
    ) -> None:
        self.directory, self.resume_step = Path(directory), resume_step
        self._modules = {name: _import_sink(name) for name in sinks}
        self._files: dict[str, TextIO] = {}
        self._sinks: list[Sink] = []
        self._recent: deque[tuple[float, float]] = deque(maxlen=episode_window)
        self._begin = time.monotonic() - wall_offset
        self._origin = {} if commit is None else {"commit": commit}

    @property
    def wall(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return time.monotonic() - self._begin

    def open(self) -> None:
        """The run begins: what is there is cut, or set aside, and dashboards are told. A second call does nothing."""
        if self._files:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        for path in (self.directory / name for name in FILES):
            _set_aside(path) if self.resume_step is None else cut(path, self.resume_step)
        for line in read_lines(self.directory / SCORES):
            if isinstance(line.get("episode/score"), (int, float)):
                self._recent.append((line["episode/score"], line.get("episode/length") or 0))
        self._files = {name: (self.directory / name).open("a", encoding="utf-8") for name in FILES}
        modules = self._modules.items()
        self._sinks = [_open_sink(name, module, self.directory, self.resume_step) for name, module in modules]

    def _write(self, file: str, line: Mapping[str, Any]) -> None:
        """One write and one flush, so that a crash can tear no line but the last."""
        self.open()
        clean = {name: _finite(value) for name, value in line.items()}
        self._files[file].write(json.dumps(clean, allow_nan=False) + "\n")
        self._files[file].flush()

    def scalars(self, step: int, metrics: Mapping[str, Any]) -> None:
        """One line of metrics: floats, and lists over a horizon. Higher arrays are pictures: skipped."""
        values = {name: np.asarray(_detach(value)) for name, value in metrics.items()}
        arrays = {name: value.astype(np.float64) for name, value in values.items() if value.ndim < 2}
        self._write(METRICS, {"step": int(step), **{name: a.tolist() for name, a in arrays.items()}})
        flat: dict[str, float] = {}
        for name, array in arrays.items():
            if array.ndim == 0:
                flat[name] = float(array)
            else:
                flat |= {f"{name}/{k}": float(array[k - 1]) for k in CURVE_POINTS if k <= len(array)}
        for sink in self._sinks:
            sink.write(int(step), flat)

    def episode(self, step: int, ret: float, length: int) -> None:
        """A finished training episode."""
        ret, length = float(ret), int(length)
        self._write(SCORES, {"step": int(step), "episode/score": ret, "episode/length": length})
        self._recent.append((ret, length))
        returns, lengths = np.mean(self._recent, axis=0)
        self.scalars(step, {
            "charts/episodic_return": ret,
            "charts/episodic_length": length,
            "rollout/ep_rew_mean": returns,
            "rollout/ep_len_mean": lengths,
        })  # fmt: skip

    def evaluation(
        self, step: int, mode: Literal["mode", "sample"], returns: Sequence[float] | np.ndarray
    ) -> None:
        """Whole evaluation episodes: ``mode`` says whether the policy's mode acted or a sample of it."""
        values = np.asarray(returns, dtype=np.float64).ravel()
        if mode not in ("mode", "sample") or not len(values):
            raise ValueError(f"needs mode 'mode' or 'sample' and at least one return: {mode!r}, {values}")
        with np.errstate(invalid="ignore"):
            mean, std = float(values.mean()), float(values.std())
        line = {"step": int(step), "mode": mode, "mean": mean, "std": std, "episodes": len(values)}
        self._write(SCORES, {**line, "returns": values.tolist(), "wall": round(self.wall, 3), **self._origin})
        self.scalars(step, {"eval/mean_reward" if mode == "mode" else "eval/sample_mean_reward": mean})

    def close(self) -> None:
        """Close files and dashboards; a second call does nothing."""
        for sink in self._sinks:
            sink.close()
        for file in self._files.values():
            file.close()
        self._sinks = []

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a .jsonl file; lines that a crash has torn are passed over."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), (int, float)):
                yield line


def cut(path: Path, step: int) -> None:
    """Drop what lies after ``step``, and torn lines, from a .jsonl file: whole or not at all."""
    if not path.is_file():
        return
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for line in read_lines(path):
            if line["step"] <= step:
                file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _set_aside(path: Path) -> None:
    """A new run must not mix with an old one; keep the old file once, under another name."""
    if path.is_file() and path.stat().st_size:
        os.replace(path, path.with_name(path.name + ".old"))


def _detach(value: Any) -> Any:
    """A tensor on any device as something numpy takes; everything else as it is."""
    return value.detach().float().cpu().numpy() if hasattr(value, "detach") else value


def _finite(value: Any) -> Any:
    """JSON has no NaN: null in its place, at any depth."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class _TensorBoard:
    """TensorBoard event files in the run directory."""

    def __init__(self, module: Any, directory: Path, resume_step: int | None) -> None:
        again = any(directory.glob("events.out.tfevents.*"))
        purge = (0 if resume_step is None else resume_step + 1) if again else None
        self._writer = module.SummaryWriter(str(directory), purge_step=purge)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Tracker:
    """wandb and trackio: the same three calls. What a crashed run logged past its checkpoint stays there."""

    def __init__(self, module: Any, directory: Path, resume_step: int | None) -> None:
        self._module = module
        name_file = directory / f"{module.__name__}.txt"  # a resumed run goes on under its first name
        if resume_step is None or not name_file.is_file():
            place = directory.resolve().parts[-3:]  # environment, agent, seed
            name_file.write_text("-".join([*place, time.strftime("%Y%m%d-%H%M%S")]), encoding="utf-8")
        name = name_file.read_text(encoding="utf-8")
        options = {"dir": str(directory), "id": name} if module.__name__ == "wandb" else {}
        module.init(project="mbrl", name=name, resume="allow", **options)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._module.log(dict(values), step=step)

    def close(self) -> None:
        self._module.finish()


_MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}


def _import_sink(name: str) -> Any:
    if name not in _MODULES:
        raise UserError(f"no such logging sink: {name!r}. Choose from {', '.join(_MODULES)}.")
    try:
        return importlib.import_module(_MODULES[name])
    except ImportError as error:
        message = f"logging to {name} needs a package that is missing ({error}): pip install {name}"
        raise UserError(message) from error


def _open_sink(name: str, module: Any, directory: Path, resume_step: int | None) -> Sink:
    sink = _TensorBoard if name == "tensorboard" else _Tracker
    return sink(module, directory, resume_step)
