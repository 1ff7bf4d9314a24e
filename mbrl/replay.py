"""Replay: sequences of experience out of one ring per environment.

The rings stand side by side in arrays (N, C, ...): N environments, C steps each. Images stay uint8, an
agent's latents are stored with each step as compactly as the agent gives them, and the agent may
rewrite them. A sequence may span episodes; ``is_first`` tells where.

On disk, finished stretches of the rings are append-only chunk files that all checkpoints share; what
still changes (latents, the unfinished stretch, counters) belongs to one checkpoint.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from mbrl.errors import UserError
from mbrl.steps import Steps

LatentSpec = dict[str, tuple[tuple[int, ...], torch.dtype]]
CHUNK = 1024  # steps of every ring in one chunk file


@dataclass(frozen=True)
class ReplayConfig:
    capacity: int = 1_000_000
    """Steps kept, over all environments."""
    gigabytes: float = 4.0
    """Memory it may take; the tighter of the two limits holds."""
    recency: float = 0.0
    """Share of sampled sequences that favours new data; the rest is uniform."""
    recency_power: float = 3.0
    """A recent sequence's age is the replay's length times u^power, u uniform."""
    online: bool = True
    """Every new stretch of data is sampled once as soon as it is long enough."""


@dataclass(frozen=True)
class Batch:
    steps: Steps
    """(B, T)."""
    latents: dict[str, Tensor]
    """Each (B, T, ...), as stored."""
    index: tuple[np.ndarray, np.ndarray]
    """Environment (B, 1) and time since the start of the run (B, T), for ``write_latents``."""

    def on(self, device: torch.device) -> tuple[Steps, dict[str, Tensor]]:
        """Steps and latents there."""
        return self.steps.to(device), {name: value.to(device) for name, value in self.latents.items()}


class Replay:
    """
    Args:
        observation_space: flat Dict.
        action_size: A.
        num_envs: N, rings.
        latents: shape and type of what an agent stores with each step.
        config: limits and sampling.
        seed: of the sampling.
        device: where batches are wanted. On a GPU the replay lies there if it takes at most half of what
            is free; else it stays in memory and hands out pinned batches.

    Raises:
        UserError: the limits leave no room for a single chunk.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_size: int,
        num_envs: int,
        latents: LatentSpec | None = None,
        config: ReplayConfig | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ):
        self.config, self.num_envs = config or ReplayConfig(), num_envs
        specs = {
            f"obs/{key}": (tuple(space.shape or ()), torch.from_numpy(np.empty(0, space.dtype)).dtype)
            for key, space in observation_space.spaces.items()
        }
        specs |= {"action": ((action_size,), torch.float32), "reward": ((), torch.float32)}
        specs |= dict.fromkeys(("is_first", "is_last", "is_terminal"), ((), torch.bool))
        self.latent_names = sorted(latents or {})
        specs |= {f"latent/{name}": (latents or {})[name] for name in self.latent_names}
        self.bytes_per_step = sum(math.prod(shape) * dtype.itemsize for shape, dtype in specs.values())
        limit = min(self.config.capacity, int(self.config.gigabytes * 2**30) // self.bytes_per_step)
        self.capacity = limit // num_envs // CHUNK * CHUNK  # C, whole chunks
        if self.capacity < CHUNK:
            raise UserError(
                f"the replay's limits ({self.config.capacity} steps, {self.config.gigabytes} GB) hold "
                f"{limit} steps of {self.bytes_per_step} bytes; {num_envs} environments need at least "
                f"{num_envs * CHUNK}. Raise --training.replay.capacity or --training.replay.gigabytes."
            )
        wanted = torch.device(device)
        self.device = wanted if self._fits(wanted) else torch.device("cpu")
        self.pinned = self.device != wanted
        self.arrays = {
            name: zeros((num_envs, self.capacity, *shape), dtype, self.device) for name, (shape, dtype) in specs.items()
        }
        self.time = 0  # steps ever added to each ring
        self.fresh = np.zeros(num_envs, np.int64)  # start of each ring's next unseen stretch
        self.rng = np.random.default_rng(seed)
        self.stale: set[int] = set()  # chunks that changed after they may have been written
        self.saved_oldest = 0  # what the checkpoint before the next one begins with

    def _fits(self, device: torch.device) -> bool:
        """Whether all of it may lie there."""
        if device.type != "cuda":
            return True
        free, _ = torch.cuda.mem_get_info(device)
        return self.num_envs * self.capacity * self.bytes_per_step <= free / 2

    def __len__(self) -> int:
        """Steps stored, over all environments."""
        return self.num_envs * min(self.time, self.capacity)

    @property
    def num_bytes(self) -> int:
        return self.bytes_per_step * len(self)

    @property
    def oldest(self) -> int:
        """Time of the oldest step kept."""
        return max(0, self.time - self.capacity)

    def add(self, step: Steps, latents: dict[str, Tensor] | None = None) -> None:
        """Append one step (N,) to the rings."""
        row = self.time % self.capacity
        for name, value in _fields(step, latents or {}).items():
            self.arrays[name][:, row] = value.to(self.device)
        self.time += 1

    def close_episode(self, env: int) -> None:
        """Mark the newest step of a ring as its episode's last (cut short, not terminal)."""
        if self.time:
            self.arrays["is_last"][env, (self.time - 1) % self.capacity] = True
            self.stale.add((self.time - 1) // CHUNK)

    def clear(self) -> None:
        """Forget every step, and that any was saved; files that hold one must go before the next ``save``."""
        self.time, self.fresh = 0, np.zeros(self.num_envs, np.int64)
        self.saved_oldest = 0
        self.stale.clear()

    def ready(self, length: int) -> bool:
        """Whether sequences of this length can be sampled."""
        return min(self.time, self.capacity) >= length

    def sample(self, batch_size: int, length: int) -> Batch:
        """(B, T) sequences: unseen ones first, then the mixture of uniform and recent."""
        starts = self._starts(length)
        env = self.rng.integers(self.num_envs, size=batch_size)
        u = self.rng.random(batch_size)
        recent = self.rng.random(batch_size) < self.config.recency
        age = np.where(recent, u**self.config.recency_power, u) * starts
        start = self.time - length - age.astype(np.int64)
        if self.config.online:
            self._place_unseen(env, start, length)
        return self._gather(env[:, None], start[:, None] + np.arange(length))

    def peek(self, batch_size: int, length: int) -> Batch:
        """(B, T) uniform sequences, to look at: what is sampled later is the same as without it."""
        return self._uniform(np.random.default_rng(self.time), batch_size, length)

    def draw(self, batch_size: int, length: int) -> Batch:
        """(B, T) uniform sequences; what no ``sample`` has held yet stays unseen for it."""
        return self._uniform(self.rng, batch_size, length)

    def latest(self, length: int) -> Batch:
        """(N, T): the newest steps of every ring."""
        time = np.broadcast_to(np.arange(self.time - length, self.time), (self.num_envs, length))
        return self._gather(np.arange(self.num_envs)[:, None], time)

    def write_latents(self, index: tuple[np.ndarray, np.ndarray], latents: dict[str, Tensor]) -> None:
        """Rewrite the latents of sampled steps, each (B, T, ...), as long as they are still kept."""
        env, time = np.broadcast_arrays(*index)
        kept = time >= self.oldest
        place = torch.from_numpy(env[kept]), torch.from_numpy(time[kept] % self.capacity)
        for name, value in latents.items():
            value = value.flatten(0, 1) if kept.all() else value[torch.from_numpy(kept)]
            self.arrays[f"latent/{name}"][place] = value.to(self.device)

    def _uniform(self, rng: np.random.Generator, batch_size: int, length: int) -> Batch:
        env = rng.integers(self.num_envs, size=(batch_size, 1))
        start = self.oldest + rng.integers(self._starts(length), size=(batch_size, 1))
        return self._gather(env, start + np.arange(length))

    def _starts(self, length: int) -> int:
        """How many sequences of this length a ring offers."""
        starts = self.time - length - self.oldest + 1
        if starts < 1:
            raise ValueError(f"sequences of {length} steps asked for, {min(self.time, self.capacity)} stored")
        return starts

    def _place_unseen(self, env: np.ndarray, start: np.ndarray, length: int) -> None:
        """Overwrite the first entries with stretches that no batch has held yet, oldest first."""
        place = 0
        self.fresh = np.maximum(self.fresh, self.oldest)
        for ring in range(self.num_envs):
            while place < len(env) and self.fresh[ring] + length <= self.time:
                env[place], start[place] = ring, self.fresh[ring]
                self.fresh[ring] += length
                place += 1

    def _gather(self, env: np.ndarray, time: np.ndarray) -> Batch:
        place = tuple(torch.from_numpy(index).to(self.device) for index in (env, time % self.capacity))
        values = {name: array[place] for name, array in self.arrays.items()}
        if self.pinned:
            values = {name: value.pin_memory() for name, value in values.items()}
        obs = {name.removeprefix("obs/"): value for name, value in values.items() if name.startswith("obs/")}
        flags = (values["is_first"], values["is_last"], values["is_terminal"])
        steps = Steps(obs, values["action"], values["reward"], *flags)
        return Batch(steps, {name: values[f"latent/{name}"] for name in self.latent_names}, (env, time))

    # ---- on disk -------------------------------------------------------------------------------

    def save(self, directory: Path, checkpoint: Path) -> dict[str, Any]:
        """Write what is new: finished chunks to ``directory``, the rest into ``checkpoint``.

        Returns:
            What ``load`` needs to know, as plain numbers: belongs into the checkpoint's manifest.
        """
        directory.mkdir(parents=True, exist_ok=True)
        fixed = [name for name in self.arrays if not name.startswith("latent/")]
        done = self.time // CHUNK
        for chunk in range(self._whole(self.oldest) // CHUNK, done):
            path = directory / f"chunk-{chunk:06d}.npz"
            if chunk in self.stale or not path.exists():
                rows = np.arange(chunk * CHUNK, (chunk + 1) * CHUNK) % self.capacity
                _write(path, {name: self._rows(name, rows) for name in fixed})
        self.stale.clear()
        for path in directory.glob("chunk-*.npz"):
            if _chunk_of(path) < self.saved_oldest // CHUNK:  # neither this checkpoint's nor the last one's
                path.unlink()
        self.saved_oldest = self.oldest
        kept = np.arange(self.oldest, self.time) % self.capacity
        # The oldest, half overwritten stretch and the newest, unfinished one.
        loose = np.concatenate([np.arange(self.oldest, self._whole(self.oldest)), np.arange(done * CHUNK, self.time)])
        arrays = {name: self._rows(name, loose % self.capacity) for name in fixed}
        arrays |= {f"latent/{n}": self._rows(f"latent/{n}", kept) for n in self.latent_names}
        _write(checkpoint / "replay.npz", arrays)
        return {
            "time": self.time, "num_envs": self.num_envs, "capacity": self.capacity, "shapes": self._shapes(),
            "fresh": self.fresh.tolist(), "rng": json.dumps(self.rng.bit_generator.state),
        }  # fmt: skip

    def load(self, directory: Path, checkpoint: Path, manifest: dict[str, Any]) -> None:
        """Become the replay that ``save`` described; chunks newer than that are removed.

        Raises:
            UserError: it was another environment's, or has other limits.
            OSError, ValueError: a file is missing or damaged.
        """
        for key, mine in (("num_envs", self.num_envs), ("capacity", self.capacity), ("shapes", self._shapes())):
            if manifest[key] != mine:
                raise UserError(
                    f"the stored replay has {key} {manifest[key]}, this run {mine}; "
                    "use the options it was made with, or start over with --fresh"
                )
        self.time, self.fresh = manifest["time"], np.array(manifest["fresh"], np.int64)
        self.rng.bit_generator.state = json.loads(manifest["rng"])
        done = self.time // CHUNK
        for path in directory.glob("chunk-*.npz"):
            if _chunk_of(path) >= done:
                path.unlink()
        self.saved_oldest = self.oldest
        for chunk in range(self._whole(self.oldest) // CHUNK, done):
            rows = np.arange(chunk * CHUNK, (chunk + 1) * CHUNK) % self.capacity
            for name, value in _read(directory / f"chunk-{chunk:06d}.npz").items():
                self.arrays[name][:, rows] = torch.from_numpy(value).to(self.device)
        kept = np.arange(self.oldest, self.time) % self.capacity
        loose = np.concatenate([np.arange(self.oldest, self._whole(self.oldest)), np.arange(done * CHUNK, self.time)])
        for name, value in _read(checkpoint / "replay.npz").items():
            rows = kept if name.startswith("latent/") else loose % self.capacity
            self.arrays[name][:, rows] = torch.from_numpy(value).to(self.device)

    def _rows(self, name: str, rows: np.ndarray) -> np.ndarray:
        """(N, len(rows), ...)."""
        return self.arrays[name][:, rows].cpu().numpy()

    def _shapes(self) -> dict[str, list[Any]]:
        """Shape and type of a step's arrays."""
        return {
            name: [*array.shape[2:], str(array.dtype).removeprefix("torch.")]
            for name, array in sorted(self.arrays.items())
        }

    def _whole(self, time: int) -> int:
        """The start of the first whole chunk that begins at or after this time."""
        return min(-(-time // CHUNK) * CHUNK, self.time)


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on the CPU their pages are taken from the system when they are first written to, not before."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or not size:
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.frombuffer(mmap.mmap(-1, size, access=mmap.ACCESS_COPY), dtype=dtype).view(shape)


def _fields(step: Steps, latents: dict[str, Tensor]) -> dict[str, Tensor]:
    fields = {f"obs/{key}": value for key, value in step.obs.items()}
    fields |= {f"latent/{key}": value for key, value in latents.items()}
    names = ("action", "reward", "is_first", "is_last", "is_terminal")
    return fields | {name: getattr(step, name) for name in names}


def _chunk_of(path: Path) -> int:
    return int(path.stem.removeprefix("chunk-"))


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Whole or not at all: under a temporary name first."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except (BadZipFile, EOFError) as error:  # cut short, or empty
        raise ValueError(f"{path} is damaged: {error}") from error
