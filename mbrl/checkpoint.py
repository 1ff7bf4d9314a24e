"""Checkpoints: a run on disk, whole, or not there at all.

    run/checkpoint/<step>/   model.safetensors   named tensors; configuration and format in its metadata
                             state.pt            everything else that the run needs to go on
                             replay.npz          what the replay cannot put into shared chunks
                             manifest.json       sizes and checksums of the above; what run this is
    run/replay/              chunks that all checkpoints share

A checkpoint is written under a temporary name, flushed to the disk, and renamed: a crash at any moment
leaves the one before it. The last two are kept, and the best.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mbrl.errors import UserError

FORMAT = 1
DAMAGE = (OSError, ValueError, KeyError, SafetensorError)


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint whose checksums hold."""

    path: Path
    manifest: dict[str, Any]
    notes: tuple[str, ...] = ()
    """What had to be passed over to arrive here."""

    @property
    def step(self) -> int:
        """Environment steps."""
        return int(self.manifest["step"])

    @property
    def wall(self) -> float:
        """Seconds of training until here."""
        return float(self.manifest["wall"])

    @property
    def config(self) -> dict[str, Any]:
        """The run's configuration as plain dicts, as ``train`` was given it."""
        return dict(self.manifest["config"])

    @property
    def replay_directory(self) -> Path:
        return self.path.parent.parent / "replay"

    def model(self) -> dict[str, Tensor]:
        return load_file(self.path / "model.safetensors")

    def state(self) -> dict[str, Any]:
        """Everything but the model's tensors: {"agent": ..., "loop": ...}."""
        state = torch.load(self.path / "state.pt", map_location="cpu", weights_only=True)
        return {"agent": state["agent"], "loop": unpack(state["loop"])}

    def agent_state(self) -> dict[str, Any]:
        """What ``agent.load_state_dict`` takes."""
        return {**self.state()["agent"], "model": self.model()}


class Checkpoints:
    """Writes the checkpoints of one run directory, keeping the last two and the best.

    Raises:
        UserError: ``starting`` a run where one is; from ``save``: the disk is full or read-only.
    """

    def __init__(self, directory: Path, config: dict[str, Any], starting: bool) -> None:
        self.directory = Path(directory)
        self.root, self.replay_directory = self.directory / "checkpoint", self.directory / "replay"
        self.config = config
        if starting and any(_paths(self.root)):
            raise UserError(
                f"{directory} already holds a run; the same command continues it, and --fresh starts over "
                "(in Python: saved = mbrl.checkpoint.latest(directory); train(..., Logger(directory, saved.step), "
                "directory=directory, resume=saved))"
            )
        if starting:  # chunks of a run that ended before its first checkpoint
            shutil.rmtree(self.replay_directory, ignore_errors=True)

    def save(
        self, step: int, agent_state: dict[str, Any], loop: dict[str, Any], replay: Any, about: dict[str, Any]
    ) -> Path:
        """``about`` joins the manifest: "wall", "identity", and "score" if the agent was just evaluated."""
        name = _free_name(self.root, step)
        temporary = self.root / f".tmp-{name}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            for leftover in self.root.glob(".tmp-*"):
                shutil.rmtree(leftover)
            temporary.mkdir()
            about = {**about, "replay": replay.save(self.replay_directory, temporary)}
            rest = {key: value for key, value in agent_state.items() if key != "model"}
            content = {"format": FORMAT, "step": step, "config": self.config, **about}
            described = {key: content[key] for key in ("config", "agent") if key in content}
            metadata = {"format": str(FORMAT), "config": json.dumps(described, default=str)}
            save_file(_own(agent_state["model"]), temporary / "model.safetensors", metadata)
            save_state({"agent": rest, "loop": pack(loop)}, temporary / "state.pt")
            write_manifest(temporary, content)
            _flush(temporary)
            _flush(self.replay_directory)
            temporary.rename(self.root / name)
            _flush_entry(self.root)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise UserError(
                f"cannot write the checkpoint {self.root / name}: {error}. The one before it is whole. "
                "Free some space or make the directory writable; then the same command continues the run"
            ) from error
        self._rotate()
        return self.root / name

    def forget_after(self, checkpoint: Checkpoint) -> None:
        """Remove what is newer (damaged) than the checkpoint that the run continues from."""
        for path in _paths(self.root):
            if path.name > checkpoint.path.name:
                shutil.rmtree(path, ignore_errors=True)

    def _rotate(self) -> None:
        paths = list(_paths(self.root))
        scores = {path: _score(path) for path in paths}
        best = max(paths, key=lambda path: (scores[path], path.name))
        for path in paths[:-2]:
            if path != best or scores[path] == -np.inf:
                shutil.rmtree(path, ignore_errors=True)


def newest_path(directory: Path | str) -> Path | None:
    """Of the newest checkpoint of a run, whole or not."""
    return max(_paths(Path(directory) / "checkpoint"), default=None)


def latest(directory: Path | str) -> Checkpoint | None:
    """The newest checkpoint of a run that is whole; None where there is none.

    Raises:
        UserError: there are checkpoints, and all are damaged, or they are of another format.
    """
    notes: list[str] = []
    for path in reversed(list(_paths(Path(directory) / "checkpoint"))):
        try:
            return Checkpoint(path, verify(path), tuple(notes))
        except DAMAGE as error:
            if isinstance(error, UserError):
                raise
            notes.append(f"the checkpoint {path} is damaged ({error}); continuing from the one before it")
    if notes:
        raise UserError(f"no checkpoint in {directory} is whole: {notes[-1]}. Start over with --fresh")
    return None


def best(directory: Path | str) -> Checkpoint | None:
    """The checkpoint with the highest evaluation; where none was evaluated, the newest."""
    paths = [path for path in _paths(Path(directory) / "checkpoint") if _score(path) > -np.inf]
    for path in sorted(paths, key=lambda path: (_score(path), path.name), reverse=True):
        try:
            return Checkpoint(path, verify(path))
        except DAMAGE:
            continue
    return latest(directory)


def save_state(state: dict[str, Any], path: Path) -> None:
    """torch.save, whose errors do not tell a full disk from anything else."""
    try:
        torch.save(state, path)
    except RuntimeError as error:
        raise OSError(f"{path.name}: {error}") from error


def write_manifest(path: Path, content: dict[str, Any]) -> None:
    """Describe the files that are in ``path``, and the manifest itself, by checksum."""
    names = sorted(path.iterdir())
    files = {file.name: {"bytes": file.stat().st_size, "sha256": _checksum(file)} for file in names}
    content = json.loads(json.dumps({**content, "files": files}, default=str))
    content["sha256"] = _digest(content)
    (path / "manifest.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def verify(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint that is whole.

    Raises:
        UserError: written by a version with another format.
        OSError, ValueError, KeyError: damaged.
    """
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    checksum = manifest.pop("sha256")
    if manifest["format"] != FORMAT:
        raise UserError(
            f"the checkpoint {path} has format {manifest['format']}, this version reads format {FORMAT}; "
            "continue it with the version that wrote it, or start over with --fresh"
        )
    if checksum != _digest(manifest):
        raise ValueError("manifest.json has the wrong checksum")
    for name, file in manifest["files"].items():
        if (path / name).stat().st_size != file["bytes"]:
            raise ValueError(f"{name} has the wrong size")
        if _checksum(path / name) != file["sha256"]:
            raise ValueError(f"{name} has the wrong checksum")
    return dict(manifest)


def pack(value: Any) -> Any:
    """Nested data as torch.load(weights_only=True) reads it: numpy arrays become tagged tensors.

    Raises:
        TypeError: something that is neither a container, a number, text, an array nor a tensor.
    """
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            raise TypeError("an array of objects cannot be stored")
        plain = value.view(np.uint8) if value.dtype.kind in "US" else value
        tensor = torch.from_numpy(np.ascontiguousarray(plain).reshape(plain.shape))
        return {"__array__": tensor.clone(), "dtype": value.dtype.str}
    if isinstance(value, np.generic):
        return pack(value.item())
    if isinstance(value, dict):
        return {key: pack(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [pack(item) for item in value] if isinstance(value, list) else tuple(map(pack, value))
    if isinstance(value, bytes):
        return {"__bytes__": torch.tensor(list(value), dtype=torch.uint8)}
    if value is None or isinstance(value, bool | int | float | str | Tensor):
        return value
    raise TypeError(f"{type(value).__name__} cannot be stored")


def unpack(value: Any) -> Any:
    """The inverse of ``pack``."""
    if isinstance(value, dict):
        if "__array__" in value:
            array: np.ndarray[Any, Any] = value["__array__"].numpy()
            return array.view(value["dtype"])
        if "__bytes__" in value:
            return bytes(value["__bytes__"].tolist())
        return {key: unpack(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(unpack(item) for item in value)
    return value


def as_tensors(value: Any) -> Any:
    """Dataclasses of tensors as plain dicts."""
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    return {key: as_tensors(item) for key, item in value.items()} if isinstance(value, dict) else value


def like(value: Any, template: Any) -> Any:
    """The nest ``value``, its tensors on the devices of ``template``."""
    if isinstance(value, dict):
        return {key: like(item, template[key]) for key, item in value.items()}
    return value.to(template.device) if isinstance(value, Tensor) else value


def load_agent(agent: Any, checkpoint: Checkpoint) -> None:
    """Give the agent what it had learnt.

    Raises:
        UserError: it is built differently.
    """
    try:
        agent.load_state_dict(checkpoint.agent_state())
    except (RuntimeError, KeyError, ValueError, AssertionError) as error:
        raise UserError(
            f"the checkpoint {checkpoint.path} was made by an agent that is built differently "
            f"({' '.join(str(error).split())}). "
            "Use the options it was made with (config.yaml in its run directory), another --seed, or --fresh"
        ) from error


def describe_agent(agent: Any) -> dict[str, Any]:
    """Its class and, where it has one, its configuration: what it takes to build it again."""
    config = getattr(agent, "config", None)
    known = asdict(config) if is_dataclass(config) and not isinstance(config, type) else None
    return {"class": f"{type(agent).__module__}:{type(agent).__qualname__}", "config": known}


def check_same_run(checkpoint: Checkpoint, identity: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """Notes on settings that differ; the new ones hold.

    Raises:
        UserError: the difference makes the checkpoint useless for this run.
    """
    before = checkpoint.manifest["identity"]
    differ = [key for key in identity if before[key] != identity[key]]
    wrong = [f"{key}: {before[key]} there, {identity[key]} now" for key in differ]
    if wrong:
        raise UserError(
            f"the checkpoint {checkpoint.path} is of a different run ({'; '.join(wrong)}). "
            "Continue it with the options it was made with, or start over with --fresh"
        )
    old, new = flatten(checkpoint.config), flatten(json.loads(json.dumps(config, default=str)))
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return [f"{key} was {old.get(key)}, continues with {new.get(key)}" for key in changed]


def flatten(nest: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in nest.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _own(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies that share no memory, as safetensors wants them."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _paths(root: Path) -> Iterator[Path]:
    """Finished checkpoints, oldest first."""
    if root.is_dir():
        yield from sorted(path for path in root.iterdir() if path.name[:12].isdigit())


def _free_name(root: Path, step: int) -> str:
    """The step; with a suffix that sorts behind all others where the same step has been saved before."""
    name = f"{step:012d}"
    taken = [int(path.name[13:] or 1) for path in root.glob(f"{name}*")]
    return f"{name}-{max(taken) + 1:03d}" if taken else name


def _score(path: Path) -> float:
    try:
        score = json.loads((path / "manifest.json").read_text(encoding="utf-8")).get("score")
    except DAMAGE:
        score = None
    return -np.inf if score is None else float(score)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _flush(directory: Path) -> None:
    """Every file of a directory, and the directory itself, to the disk."""
    for file in directory.iterdir():
        _flush_entry(file)
    _flush_entry(directory)


def _flush_entry(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
