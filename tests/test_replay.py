"""Replay: what comes out is what went in; rings, limits, sampling, latents, and the files on disk.

The experience is a count: step number n of environment e carries the numbers n and e in every field,
so that any mix-up shows. Chunks are 8 steps here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

import mbrl.replay
from mbrl.errors import UserError
from mbrl.replay import Batch, LatentSpec, Replay, ReplayConfig
from mbrl.steps import Steps

N, CHUNK, EPISODE = 2, 8, 5
SPACE = spaces.Dict({
    "state": spaces.Box(-np.inf, np.inf, (2,)),
    "image": spaces.Box(0, 255, (2, 2, 1), np.uint8),
    "mode": spaces.Discrete(100_000),
})  # fmt: skip
LATENTS: LatentSpec = {"deter": ((3,), torch.float16), "stoch": ((2,), torch.uint8)}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mbrl.replay, "CHUNK", CHUNK)


def counting(time: int) -> tuple[Steps, dict[str, torch.Tensor]]:
    """Step ``time`` of N environments; those of environment 1 are 1000 ahead."""
    n = torch.arange(N) * 1000 + time
    position = n % EPISODE
    obs = {
        "state": torch.stack([n, -n], 1).float(),
        "image": (n % 256).to(torch.uint8).view(N, 1, 1, 1).expand(N, 2, 2, 1),
        "mode": n,
    }
    flags = (position == 0, position == EPISODE - 1, (position == EPISODE - 1) & (n % 2 == 0))
    latents = {"deter": n.view(N, 1).expand(N, 3).half(), "stoch": (n % 7).view(N, 1).expand(N, 2).byte()}
    return Steps(obs, torch.stack([n, n, n], 1).float(), n.float() / 2, *flags), latents


def make(steps: int, capacity: int = 64, seed: int = 0, **options: Any) -> Replay:
    """A replay of this many steps per ring; ``capacity`` per ring too."""
    config = ReplayConfig(capacity=capacity * N, **({"online": False} | options))
    return grow(Replay(SPACE, 3, N, LATENTS, config, seed), steps)


def grow(replay: Replay, steps: int) -> Replay:
    for _ in range(steps):
        replay.add(*counting(replay.time))
    return replay


def check(batch: Batch) -> None:
    """Every field of every step belongs to the environment and time that ``index`` says."""
    env, time = np.broadcast_arrays(*batch.index)
    for b, t in np.ndindex(*env.shape):
        steps, latents = counting(int(time[b, t]))
        expected, mine = steps[int(env[b, t])], batch.steps[b, t]
        for key, value in expected.obs.items():
            assert torch.equal(mine.obs[key], value) and mine.obs[key].dtype == value.dtype, key
        for name in ("action", "reward", "is_first", "is_last", "is_terminal"):
            assert torch.equal(getattr(mine, name), getattr(expected, name)), name
        for name, value in latents.items():
            assert torch.equal(batch.latents[name][b, t], value[int(env[b, t])]), name


# ---- data path --------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [13, 64, 65, 150])
def test_samples_are_what_was_added(steps: int) -> None:
    """Consecutive, over the ends of episodes and the seam of the ring, from all that is kept."""
    replay = make(steps)
    starts, envs = set(), set()
    for _ in range(30):
        batch = replay.sample(8, 7)
        check(batch)
        env, time = batch.index
        assert (np.diff(time, axis=1) == 1).all()
        starts |= set(time[:, 0].tolist())
        envs |= set(env.flatten().tolist())
    assert envs == {0, 1}
    oldest = max(0, steps - 64)
    assert starts <= set(range(oldest, steps - 6)) and {oldest, steps - 7} <= starts


def test_every_start_is_as_likely() -> None:
    replay = make(20)
    counts = np.bincount(replay.sample(16_000, 5).index[1][:, 0], minlength=16)
    assert len(counts) == 16 and counts.min() > 850 and counts.max() < 1150


def test_latest_gives_the_newest_steps_of_every_ring() -> None:
    batch = make(70).latest(9)
    check(batch)
    assert batch.steps.reward.shape == (N, 9)
    assert (batch.index[1] == np.arange(61, 70)).all()


def test_length_counts_all_environments_up_to_the_capacity() -> None:
    replay = make(13)
    assert len(replay) == 26 and replay.num_bytes == 26 * replay.bytes_per_step
    assert replay.ready(13) and not replay.ready(14)
    assert len(grow(replay, 100)) == 128 and not replay.ready(65)


def test_an_episode_that_is_cut_short_ends_with_its_newest_step() -> None:
    replay = make(7)
    replay.close_episode(1)
    last = replay.latest(7).steps.is_last
    assert last[1, -1] and not last[0, -1]


def test_clear_forgets() -> None:
    replay = make(70)
    replay.clear()
    assert len(replay) == 0 and not replay.ready(1)
    check(grow(replay, 9).sample(8, 9))


# ---- limits -----------------------------------------------------------------------------------------


def test_bytes_per_step_are_counted() -> None:
    """state 8, image 4, mode 8, action 12, reward 4, flags 3, latents 6 + 2."""
    assert make(0).bytes_per_step == 47


def test_the_tighter_limit_holds_in_whole_chunks() -> None:
    for gigabytes, expected in ((4.0, 64), (47 * N * 30 / 2**30, 24)):
        replay = make(0, gigabytes=gigabytes)
        assert replay.capacity == expected
        total = sum(array.nbytes for array in replay.arrays.values())
        assert total == replay.bytes_per_step * expected * N


def test_limits_without_room_are_refused() -> None:
    with pytest.raises(UserError, match=r"need at least 16.*replay\.capacity"):
        make(0, capacity=7)


def test_sequences_longer_than_what_is_stored_are_refused() -> None:
    with pytest.raises(ValueError, match="9 steps asked for, 8 stored"):
        make(8).sample(1, 9)


# ---- sampling ---------------------------------------------------------------------------------------


def test_recency_favours_new_data() -> None:
    """With power 3 half of the recent share has an age below an eighth of the replay."""
    for recency, expected in ((0.0, 1 / 8), (0.5, 1 / 16 + 1 / 4), (1.0, 1 / 2)):
        replay = make(64, recency=recency, recency_power=3.0)
        start = replay.sample(8000, 1).index[1][:, 0]
        assert abs((start >= 56).mean() - expected) < 0.03
        assert start.min() < 4  # old data stays in


def test_online_queue_gives_each_new_stretch_once_and_first() -> None:
    replay = make(0, online=True)
    seen = []
    for _ in range(12):
        grow(replay, 4)
        if replay.ready(6):
            env, time = replay.sample(4, 6).index
            due = [(e, s) for e in range(N) for s in range(0, replay.time - 5, 6) if (e, s) not in seen]
            assert list(zip(env[:, 0].tolist(), time[:, 0].tolist()))[: len(due)] == due
            seen += due
    assert seen and len(seen) == len(set(seen)) == N * (48 // 6)


def test_online_queue_skips_what_is_overwritten() -> None:
    replay = make(100, online=True)
    batch = replay.sample(40, 6)
    check(batch)
    assert batch.index[1].min() >= 36 and batch.index[1][0, 0] == 36


def test_sampling_follows_the_seed() -> None:
    index = [make(40, seed=seed).sample(8, 5).index for seed in (0, 0, 1)]
    assert (index[0][1] == index[1][1]).all() and not (index[0][1] == index[2][1]).all()


def test_looking_leaves_no_trace() -> None:
    looked, untouched = make(80, online=True), make(80, online=True)
    check(looked.peek(20, 7))
    env, time = looked.peek(1000, 7).index
    assert set(time[:, 0].tolist()) == set(range(16, 74)) and set(env.flatten().tolist()) == {0, 1}
    equal(looked, untouched)


# ---- latents ----------------------------------------------------------------------------------------


def written(index: tuple[np.ndarray, np.ndarray]) -> dict[str, torch.Tensor]:
    shape = np.broadcast_arrays(*index)[0].shape
    return {"deter": torch.full((*shape, 3), -1.0).half(), "stoch": torch.full((*shape, 2), 99).byte()}


def test_draws_are_uniform_follow_the_seed_and_leave_new_stretches_to_be_seen() -> None:
    one, two = (make(60, online=True) for _ in range(2))
    assert np.array_equal(one.draw(50, 2).index[1], two.draw(50, 2).index[1])
    times = one.draw(2000, 2).index[1][:, 0]
    assert set(times.tolist()) == set(range(59)) and np.bincount(times).max() < 80
    assert (one.fresh == 0).all()


def test_latents_are_rewritten_where_they_were_sampled() -> None:
    replay = make(80)
    env, time = replay.sample(1, 6).index
    index = (env, time[:, 1:])
    replay.write_latents(index, written(index))
    changed = replay._gather(env, time).latents
    assert (changed["deter"][0, 1:] == -1).all() and (changed["stoch"][0, 1:] == 99).all()
    assert changed["deter"][0, 0, 0] != -1
    untouched = (replay.arrays["latent/stoch"] != 99).all(-1).sum()
    assert untouched == N * 64 - 5


def test_latents_of_overwritten_steps_are_dropped() -> None:
    """The ring goes on between sampling and writing: the newer step in that row keeps its own."""
    replay = make(64)
    index = (np.array([[0]]), np.arange(6)[None])
    grow(replay, 4)
    replay.write_latents(index, written(index))
    check(replay._gather(np.zeros((1, 1), int), np.arange(64, 68)[None]))
    assert (replay.arrays["latent/stoch"][0, 4:6] == 99).all()
    assert (replay.arrays["latent/stoch"] == 99).all(-1).sum() == 2


# ---- on disk ----------------------------------------------------------------------------------------


def store(replay: Replay, folder: Path, name: str) -> dict[str, Any]:
    """Save into one checkpoint; the manifest goes through JSON."""
    (folder / name).mkdir(exist_ok=True)
    result: dict[str, Any] = json.loads(json.dumps(replay.save(folder / "replay", folder / name)))
    return result


def restore(folder: Path, name: str, manifest: dict[str, Any], **options: Any) -> Replay:
    replay = make(0, seed=123, **options)
    replay.load(folder / "replay", folder / name, manifest)
    return replay


def equal(a: Replay, b: Replay) -> None:
    """The same contents, and the same samples from now on."""
    assert a.time == b.time
    length = min(a.time, a.capacity)
    for x, y in ((a.latest(length), b.latest(length)), (a.sample(6, 4), b.sample(6, 4))):
        assert all(torch.equal(x.steps.obs[k], y.steps.obs[k]) for k in x.steps.obs)
        assert torch.equal(x.steps.action, y.steps.action) and torch.equal(x.steps.is_last, y.steps.is_last)
        assert all(torch.equal(x.latents[k], y.latents[k]) for k in x.latents)
        assert (x.index[1] == y.index[1]).all() and (x.index[0] == y.index[0]).all()


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("steps", [5, 8, 29, 64, 70, 150])
def test_a_stored_replay_is_the_same(tmp_path: Path, steps: int, online: bool) -> None:
    replay = make(steps, online=online)
    replay.sample(3, 4)
    index = (np.zeros((1, 1), int), np.array([[steps - 2, steps - 1]]))
    replay.write_latents(index, written(index))
    other = restore(tmp_path, "one", store(replay, tmp_path, "one"), online=online)
    equal(replay, other)
    equal(grow(replay, 50), grow(other, 50))


def test_chunks_are_written_once(tmp_path: Path) -> None:
    replay = make(20)
    store(replay, tmp_path, "one")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "replay").iterdir()}
    assert sorted(before) == ["chunk-000000.npz", "chunk-000001.npz"]
    manifest = store(grow(replay, 20), tmp_path, "two")
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "replay").iterdir()}
    assert len(after) == 5 and before.items() <= after.items()
    equal(replay, restore(tmp_path, "two", manifest))


def test_a_replay_that_ran_ahead_of_its_checkpoint_is_cut(tmp_path: Path) -> None:
    """The run goes on differently after the older checkpoint: its chunks replace those of the lost future."""
    replay = make(20)
    old = store(replay, tmp_path, "old")
    lost = grow(replay, 20)
    lost.close_episode(0)
    store(lost, tmp_path, "new")
    again = restore(tmp_path, "old", old)
    assert again.time == 20 and len(list((tmp_path / "replay").iterdir())) == 2
    equal(again, restore(tmp_path, "old", old))
    for _ in range(20):
        steps, latents = counting(again.time)
        again.add(
            Steps(steps.obs, -steps.action, steps.reward, steps.is_first, steps.is_last, steps.is_terminal),
            latents,
        )
    other = restore(tmp_path, "other", store(again, tmp_path, "other"))
    equal(again, other)
    assert (other.latest(20).steps.action <= 0).all()


def test_a_checkpoint_holds_its_own_latents(tmp_path: Path) -> None:
    """Chunks are shared, latents change."""
    replay = make(20)
    old = store(replay, tmp_path, "old")
    index = (np.array([[0], [1]]), np.arange(20)[None])
    replay.write_latents(index, written(index))
    new = store(replay, tmp_path, "new")
    assert (restore(tmp_path, "new", new).latest(20).latents["stoch"] == 99).all()
    check(restore(tmp_path, "old", old).latest(20))


@pytest.mark.parametrize("options", [{"capacity": 32}, {"gigabytes": 47 * N * 30 / 2**30}])
def test_a_replay_with_other_limits_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    manifest = store(make(20), tmp_path, "one")
    with pytest.raises(UserError, match="capacity 64, this run"):
        restore(tmp_path, "one", manifest, **options)


def test_a_replay_of_another_environment_is_refused(tmp_path: Path) -> None:
    manifest = store(make(20), tmp_path, "one")
    other = Replay(spaces.Dict({"state": SPACE["state"]}), 3, N, LATENTS, ReplayConfig(capacity=64 * N))
    with pytest.raises(UserError, match="shapes"):
        other.load(tmp_path / "replay", tmp_path / "one", manifest)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:99]),
        lambda path: path.write_bytes(b""),
    ],
)
def test_missing_and_damaged_chunks_are_noticed(tmp_path: Path, damage: Any) -> None:
    manifest = store(make(20), tmp_path, "one")
    damage(tmp_path / "replay" / "chunk-000001.npz")
    with pytest.raises((OSError, ValueError)):
        restore(tmp_path, "one", manifest)


def test_chunks_that_no_checkpoint_needs_are_removed(tmp_path: Path) -> None:
    replay = make(32, capacity=16)
    store(replay, tmp_path, "first")
    manifest = store(grow(replay, 16), tmp_path, "second")  # steps 32 to 47
    store(grow(replay, 16), tmp_path, "third")
    chunks = sorted(path.name for path in (tmp_path / "replay").iterdir())
    assert chunks == [f"chunk-{i:06d}.npz" for i in (4, 5, 6, 7)]
    before = make(0, capacity=16)
    before.load(tmp_path / "replay", tmp_path / "second", manifest)
    assert before.latest(16).steps.reward.tolist() == make(48, capacity=16).latest(16).steps.reward.tolist()


def test_an_episode_closed_after_its_chunk_was_written_stays_closed(tmp_path: Path) -> None:
    replay = make(CHUNK)
    store(replay, tmp_path, "open")
    replay.close_episode(0)
    again = restore(tmp_path, "closed", store(replay, tmp_path, "closed"))
    assert again.latest(CHUNK).steps.is_last[0, -1]
