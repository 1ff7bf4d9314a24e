"""Environments observed by pixels: what is seen and when, cameras, episodes played again, one OpenGL context."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium import spaces

from envs import EnvError, gym, make_env, make_envs, rendering, restore
from envs import get_states as states_of
from envs.wrappers import Pixels
from mbrl.checkpoint import latest
from scripts.main import main

DRAWN = ["dmc/cartpole-swingup", "HalfCheetah-v5", "CartPole-v1"]


@pytest.fixture(autouse=True, scope="module")
def _opengl() -> None:
    try:
        rendering.make_current()
    except EnvError as error:
        pytest.skip(f"nothing can be drawn here: {error}")


def painter(env: Any) -> Any:
    """What draws for the wrapper `Pixels`, which is the outermost but one."""
    assert isinstance(env.env, Pixels)
    return env.env._painter


# What is seen


@pytest.mark.parametrize("name", DRAWN)
def test_pixels_alone_or_beside_the_state(name: str) -> None:
    state, pixels, both = (make_env(name, observe=observe) for observe in ("state", "pixels", "both"))  # type: ignore[arg-type]
    image = spaces.Box(0, 255, (64, 64, 3), np.uint8)
    assert pixels.observation_space == spaces.Dict({"image": image})
    assert both.observation_space == spaces.Dict({**state.observation_space.spaces, "image": image})  # type: ignore[attr-defined]
    seen = []
    for env in (state, pixels, both):
        obs, _ = env.reset(seed=0)
        after, reward, *_ = env.step(env.action_space.sample() * 0)
        assert obs in env.observation_space and after in env.observation_space
        seen.append({**obs, **{f"{key} after": value for key, value in after.items()}, "reward": reward})
        env.close()
    np.testing.assert_equal(seen[2], {**seen[0], **seen[1]})
    assert seen[1]["image"].std() > 5


@pytest.mark.parametrize("name", DRAWN)
def test_every_picture_shows_the_state_it_comes_with(name: str) -> None:
    """Each differs from the last, those of a whole episode with its start and end; none is written over."""
    env = make_env(name, observe="pixels", max_episode_steps=6, action_repeat=3)
    env.action_space.seed(0)
    for seed in (0, 1):
        pictures, ended = [env.reset(seed=seed)[0]["image"]], False
        while not ended:
            obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
            ended = terminated or truncated
            pictures.append(obs["image"])
            np.testing.assert_array_equal(obs["image"], painter(env).render())
        assert len(pictures) == 3
        assert all((a != b).any() for a, b in pairwise(pictures))
    env.close()


@pytest.mark.parametrize("name", ["dmc/walker-walk", "HalfCheetah-v5"])
def test_bodies_are_drawn_where_they_are_after_the_step(name: str) -> None:
    """MuJoCo's own step leaves the places of bodies one step behind the joints."""
    env: Any = make_env(name, observe="pixels", action_repeat=1)
    env.reset(seed=0)
    for _ in range(5):
        obs, *_ = env.step(np.ones(6, np.float32))
    model, data = painter(env)._model, painter(env)._data
    mujoco.mj_forward(model, data)
    np.testing.assert_array_equal(obs["image"], painter(env).render())
    env.close()


def test_only_the_last_of_repeated_steps_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in DRAWN:
        env = make_env(name, observe="pixels", action_repeat=4)
        drawn = 0
        original = painter(env).render

        def render(original: Any = original) -> Any:
            nonlocal drawn
            drawn += 1
            return original()

        monkeypatch.setattr(painter(env), "render", render)
        env.reset(seed=0)
        env.step(env.action_space.sample())
        assert drawn == 2
        env.close()


def test_a_terrain_made_anew_is_seen() -> None:
    """quadruped-escape draws its hills at each reset; they reach the picture only when they are sent there."""
    env: Any = make_env("dmc/quadruped-escape", observe="pixels")
    env.reset(seed=0)
    model = painter(env)._model
    before = painter(env).render()
    model.hfield_data[:] = 0
    flat = painter(env).render()
    assert np.abs(before.astype(int) - flat).mean() > 2
    env.close()


def test_pictures_of_an_environment_are_shrunk_by_area() -> None:
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:20, :30] = (80, 160, 240)
    small = gym.resize(picture, 16)
    assert small.shape == (16, 16, 3) and small.dtype == np.uint8
    assert (small[:8, :8] == (80, 160, 240)).all() and not small[8:].any() and not small[:, 8:].any()
    assert (gym.resize(np.full((50, 70, 3), 255, np.uint8), 48) == 255).all()
    stripes = np.zeros((32, 24, 3), np.uint8)
    stripes[::2] = 200
    assert (gym.resize(stripes, 16) == 100).all()


# Cameras and what is refused


def test_cameras_by_index_and_by_name() -> None:
    pictures = {}
    for camera in (None, 0, "side", 1, "back", -1):
        env = make_env("dmc/walker-walk", observe="pixels", camera=camera)
        pictures[camera] = env.reset(seed=0)[0]["image"]
        env.close()
    np.testing.assert_array_equal(pictures[None], pictures[0])
    np.testing.assert_array_equal(pictures["side"], pictures[0])
    np.testing.assert_array_equal(pictures["back"], pictures[1])
    for a, b in ((0, 1), (0, -1), (1, -1)):
        assert (pictures[a] != pictures[b]).any()


def test_quadruped_is_seen_from_the_camera_of_the_literature() -> None:
    env = make_env("dmc/quadruped-walk", observe="pixels")
    assert painter(env)._camera.fixedcamid == 2
    env.close()


@pytest.mark.parametrize("size", [16, 96])
def test_pictures_have_the_size_asked_for(size: int) -> None:
    env = make_env("dmc/walker-walk", observe="pixels", size=size)
    assert env.reset(seed=0)[0]["image"].shape == (size, size, 3)
    env.close()


class Blind(gymnasium.Env[Any, Any]):
    """Cannot be drawn."""

    observation_space, action_space = spaces.Box(0, 1, (1,)), spaces.Discrete(2)


class Painted(Blind):
    """Shows an image already."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = spaces.Box(0, 255, (64, 64, 3), np.uint8)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dmc/walker-walk", {"camera": 7}, r"no camera 7. There are: -1 \(free\), 0 \(side\), 1 \(back\)"),
        ("dmc/walker-walk", {"camera": "top"}, r"no camera 'top'"),
        ("HalfCheetah-v5", {"camera": 1}, r"There are: -1 \(free\), 0 \(track\)"),
        ("CartPole-v1", {"camera": 0}, "CartPole-v1 is no MuJoCo model"),
        ("dmc/walker-walk", {"size": 15}, "16 or more"),
        ("dmc/walker-walk", {"size": 0}, "16 or more"),
        ("dmc/walker-walk", {"observe": "image"}, "state, pixels, both"),
        (Blind, {}, "Blind cannot be observed by pixels"),
        (Painted, {"observe": "both"}, "an image of its own"),
    ],
)
def test_what_cannot_be_drawn_is_refused(name: Any, options: Any, message: str) -> None:
    with pytest.raises(EnvError, match=message):
        make_env(name, **{"observe": "pixels", **options})


# One context, and episodes played again


def test_environments_share_one_context_and_do_not_disturb_each_other() -> None:
    rendering.make_current()
    context = rendering._gl
    names = ["dmc/walker-walk", "dmc/cartpole-swingup", "HalfCheetah-v5", "dmc/walker-walk"]
    alone = []
    for name in names:
        env = make_env(name, observe="pixels")
        alone.append(env.reset(seed=0)[0]["image"])
        env.close()
    together = [make_env(name, observe="pixels") for name in names]
    for _ in range(2):
        for env, picture in zip(together, alone):
            np.testing.assert_array_equal(env.reset(seed=0)[0]["image"], picture)
    together.pop().close()
    np.testing.assert_array_equal(together[0].reset(seed=0)[0]["image"], alone[0])
    for env in together:
        env.close()
    assert rendering._gl is context


@pytest.mark.parametrize("name", DRAWN)
def test_an_episode_played_again_ends_in_the_same_picture(name: str) -> None:
    envs, fresh = (make_envs(name, 2, observe="pixels", max_episode_steps=40) for _ in range(2))
    envs.reset(seed=5)
    envs.action_space.seed(0)
    for _ in range(4):
        last = envs.step(envs.action_space.sample())
    drawn = [0, 0]
    for k, env in enumerate(worker.env for worker in fresh.workers):
        original = painter(env).render

        def render(k: int = k, original: Any = original) -> Any:
            drawn[k] += 1
            return original()

        painter(env).render = render
    restored, again = restore(fresh, json.loads(json.dumps(states_of(envs))))
    assert restored == [True, True] and drawn == [1, 1]  # what lies between is not drawn
    np.testing.assert_equal(again[:4], last[:4])
    action = envs.action_space.sample()
    np.testing.assert_equal(fresh.step(action)[:4], envs.step(action)[:4])
    envs.close()
    fresh.close()


def test_processes_of_their_own_see_the_same() -> None:
    sync, parallel = (make_envs("dmc/cartpole-swingup", 2, parallel=p, observe="pixels") for p in (False, True))
    try:
        np.testing.assert_equal(sync.reset(seed=0), parallel.reset(seed=0))
    finally:
        sync.close()
        parallel.close()


# The commands


def test_a_run_on_pixels_is_continued_evaluated_and_filmed_on_pixels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "dmc_cartpole-swingup" / "dreamer" / "seed0"
    words = ["train", "dmc/cartpole-swingup", "--preset", "debug", "--runs-dir", str(tmp_path)]
    seen = ["--observe", "pixels", "--camera", "0", "--size", "32", "--max-episode-steps", "40"]
    assert main([*words, *seen, "--steps", "80", "--no-pictures"]) == 0
    assert main([*words, "--steps", "100"]) == 0
    for name in ("eval.gif", "dream.gif"):
        assert (run / name).stat().st_size > 1000
    found = latest(run)
    assert found is not None and found.step == 100
    stored = {key: found.config[key] for key in ("observe", "camera", "size", "max_episode_steps")}
    assert stored == {"observe": "pixels", "camera": 0, "size": 32, "max_episode_steps": 40}
    capsys.readouterr()
    main(["evaluate", str(run), "--episodes", "1", "--json", "--video", str(tmp_path / "film.gif")])
    assert len(json.loads(capsys.readouterr().out)["mode"]["returns"]) == 1
    assert (tmp_path / "film.gif").stat().st_size > 1000
