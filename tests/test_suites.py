"""Suites: Atari, MiniGrid, Crafter, dm_control's composer tasks, MuJoCo, and those of other packages.

What needs an extra is skipped where it is not installed: pip install -e '.[all-envs]' brings them all.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from commands import TINY, refused
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv

from agents.dreamer import Dreamer, debug
from envs import EnvError, get_states, make_env, make_envs, restore
from envs.atari import NOOPS, Atari, shrink
from envs.checks import check
from mbrl.logger import Logger
from mbrl.replay import Replay
from mbrl.training import train

MUJOCO = (
    "Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup", "InvertedDoublePendulum",
    "InvertedPendulum", "Pusher", "Reacher", "Swimmer", "Walker2d",
)  # fmt: skip


def need(module: str) -> Any:
    return pytest.importorskip(module, reason=f"{module} is not installed: pip install -e '.[all-envs]'")


def rollout(env: Any, steps: int, seed: int | None = 0) -> list[Any]:
    """A reset's observation, and the results of the first steps with fixed random actions."""
    first = env.reset(seed=seed)[0]
    env.action_space.seed(0)
    return [first, *(env.step(env.action_space.sample())[:4] for _ in range(steps))]


# Other packages' suites


def distribution(folder: Path, name: str, entry: str, module: str = "") -> None:
    """What pip leaves of a package: its module, and its metadata beside it."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mbrl.envs]\n{entry}\n")
    (folder / f"{name}.py").write_text(module)


SUITE = """
import gymnasium

def make(name, render_mode=None):
    return gymnasium.make({"swing": "Pendulum-v1"}.get(name, name), render_mode=render_mode)

def make_nothing(name):
    return name
"""


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path with a package that makes `toys/...`."""
    distribution(tmp_path, "toy_suite", "toys = toy_suite:make\nnothings = toy_suite:make_nothing", SUITE)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_an_entry_point_makes_the_environments_of_its_prefix(suite: Path) -> None:
    env = make_env("toys/swing", render_mode="rgb_array", max_episode_steps=3)
    assert env.spec is not None and env.spec.id == "Pendulum-v1" and env.render_mode == "rgb_array"
    assert [result[3] for result in rollout(env, 3)[1:]] == [False, False, True]
    with pytest.raises(EnvError, match=r"toys/nothing-like-it: .*nothing-like-it"):
        make_env("toys/nothing-like-it")
    with pytest.raises(EnvError, match=r"nothings/x gave a str; it must give a gymnasium\.Env"):
        make_env("nothings/x")
    with pytest.raises(EnvError, match=r"installed make nothings/\.\.\., toys/\.\.\."):
        make_env("neither/this-v0")


def test_an_entry_point_that_is_broken_or_claimed_twice_is_named(suite: Path) -> None:
    distribution(suite / "two", "second_suite", "toys = second_suite:make\nbroken = second_suite:make")
    sys.path.append(str(suite / "two"))  # restored with the fixture's own entry
    with pytest.raises(EnvError, match=r"second_suite:make of the package second_suite, .* pip uninstall"):
        make_env("broken/task")
    with pytest.raises(EnvError, match="claimed by second_suite:make and by toy_suite:make"):
        make_env("toys/swing")


def make_pendulum() -> Any:
    return gymnasium.make("Pendulum-v1")


def test_every_form_of_a_name_means_the_same_in_a_spawned_process(suite: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from gymnasium.envs.classic_control.pendulum import PendulumEnv as Pendulum\n"
        "def make():\n    return Pendulum()\n"
    )
    (tmp_path / "registers_mine.py").write_text(
        "import gymnasium\ngymnasium.register('Registered-v0', 'gymnasium.envs.classic_control:PendulumEnv')\n"
    )
    of_file, of_module = [f"{file}:Pendulum", f"{file}:make"], "registers_mine:Registered-v0"
    names = ["Pendulum-v1", *of_file, of_module, "toys/swing", make_pendulum]
    envs = AsyncVectorEnv([partial(make_env, name) for name in names], context="spawn")
    try:
        seen, _ = envs.reset(seed=[3] * len(names))
    finally:
        envs.close()
    here = np.stack([make_env(name).reset(seed=3)[0]["state"] for name in names])
    np.testing.assert_array_equal(seen["state"], here)
    assert (here == here[0]).all()


# What is missing


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("ALE/Pong-v5", "ale_py", "atari"),
        ("PongNoFrameskip-v4", "ale_py", "atari"),
        ("MiniGrid-Empty-5x5-v0", "minigrid", "minigrid"),
        ("BabyAI-GoToObj-v0", "minigrid", "minigrid"),
        ("crafter/reward", "crafter", "crafter"),
    ],
)
def test_a_missing_package_is_answered_with_its_extra(
    name: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    assert f'pip install "mbrl-toolkit[{extra}]"' in refused(capsys, "train", name, *TINY)


# All


@pytest.mark.parametrize(
    ("name", "module"),
    [("ALE/Pong-v5", "ale_py"), ("MiniGrid-Empty-5x5-v0", "minigrid"), ("CrafterReward-v1", "crafter")],
)
def test_an_agent_learns_from_a_suite(name: str, module: str, tmp_path: Path) -> None:
    need(module)
    preset, env = debug(), make_envs(name, 1)
    agent = Dreamer(preset.agent, env.single_observation_space, env.single_action_space)
    replay = Replay(agent.space, agent.spec.size, 1, agent.latent_spec())
    config = replace(preset.training, steps=60 * env.action_repeat)  # type: ignore[union-attr]
    result = train(agent, env, replay, config, Logger(tmp_path))
    assert result.env_steps == config.steps and result.updates > 0


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("ALE/Breakout-v5", "ale_py"),  # its actions stick at random
        ("MiniGrid-DoorKey-5x5-v0", "minigrid"),
        ("crafter/reward", "crafter"),
        ("dmc/manipulation-lift_brick_features", "dm_control"),
        ("dmc/locomotion-cmu_humanoid_go_to_target", "labmaze"),
    ],
)
def test_a_second_episode_is_resumed_as_if_never_interrupted(name: str, module: str) -> None:
    need(module)
    envs, other = (make_envs(name, 1, max_episode_steps=15) for _ in range(2))
    envs.reset(seed=5)
    envs.action_space.seed(0)
    actions = [envs.action_space.sample() for _ in range(30)]
    results = [envs.step(action) for action in actions[:20]]
    assert any(result[2] or result[3] for result in results[:-2])
    assert restore(other, get_states(envs))[0] == [True]
    for action in actions[20:]:
        np.testing.assert_equal(other.step(action)[:4], envs.step(action)[:4])


# Atari


class Blinker(gymnasium.Env[Any, Any]):
    """Frame t is black but for pixel block t; its reward is t. Ends after `length` frames."""

    metadata: dict[str, Any] = {"render_fps": 60}  # noqa: RUF012
    observation_space = spaces.Box(0, 255, (210, 160, 3), np.uint8)
    action_space = spaces.Discrete(2)

    def __init__(self, length: int = 1000) -> None:
        self.length = length

    def frame(self, t: int) -> Any:
        frame = np.zeros((210, 160, 3), np.uint8)
        frame[t % 21 * 10 : t % 21 * 10 + 10] = 255
        return frame

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self.frame(0), {"t": 0}

    def step(self, action: Any) -> Any:
        self.t += 1
        return self.frame(self.t), float(self.t), self.t >= self.length, False, {"t": self.t}


def test_atari_shows_the_maximum_of_two_frames_and_adds_up_rewards() -> None:
    env, game = Atari(Blinker(), 4), Blinker()
    first, info = env.reset(seed=0)
    t = info["t"]
    np.testing.assert_array_equal(first, shrink(game.frame(t)))
    picture, reward, *_ = env.step(0)
    assert reward == sum(range(t + 1, t + 5))
    np.testing.assert_array_equal(picture, shrink(np.maximum(game.frame(t + 3), game.frame(t + 4))))
    assert picture in env.observation_space
    every = Atari(Blinker(), 1)  # the frame before the last one was shown by the decision before
    t = every.reset(seed=0)[1]["t"]
    np.testing.assert_array_equal(every.step(0)[0], shrink(np.maximum(game.frame(t), game.frame(t + 1))))


def test_atari_starts_after_up_to_30_idle_frames_and_stops_at_the_end() -> None:
    env = Atari(Blinker(length=32), 4)
    starts = {env.reset(seed=seed)[1]["t"] for seed in range(200)}
    assert starts == set(range(NOOPS + 1))
    t = env.reset(seed=0)[1]["t"]
    steps = [env.step(0) for _ in range(-(-(32 - t) // 4))]
    assert [step[2] for step in steps] == [False] * (len(steps) - 1) + [True]
    assert steps[-1][4]["t"] == 32


def test_atari_counts_frames_as_environment_steps() -> None:
    need("ale_py")
    env = make_env("ALE/Pong-v5", max_episode_steps=10)
    assert env.observation_space["image"] == spaces.Box(0, 255, (64, 64, 3), np.uint8)  # type: ignore[index]
    assert env.action_space == spaces.Discrete(6) and env.get_wrapper_attr("action_repeat") == 4
    before = env.reset(seed=0)[1]["episode_frame_number"]
    results = [env.step(0) for _ in range(3)]
    assert [result[4]["episode_frame_number"] - before for result in results] == [4, 8, 10]
    assert [result[3] for result in results] == [False, False, True]


def test_atari_ids_say_whether_actions_stick() -> None:
    need("ale_py")
    for name, probability in (("ALE/Pong-v5", 0.25), ("PongNoFrameskip-v4", 0.0), ("ale_py:ALE/Pong-v5", 0.25)):
        env = make_env(name)
        assert env.unwrapped.ale.getFloat("repeat_action_probability") == probability  # type: ignore[attr-defined]
        assert env.observation_space["image"].shape == (64, 64, 3)  # type: ignore[index]


# MiniGrid


def test_minigrid_codes_become_one_hot_without_the_mission() -> None:
    need("minigrid")
    env, raw = make_env("MiniGrid-DoorKey-5x5-v0"), gymnasium.make("MiniGrid-DoorKey-5x5-v0")
    assert set(env.observation_space.spaces) == {"image", "direction"}  # type: ignore[attr-defined]
    obs, truth = env.reset(seed=0)[0], raw.reset(seed=0)[0]
    assert obs["image"].shape == (7 * 7 * (11 + 6 + 4),) and obs["direction"] == truth["direction"]
    kinds, colours, states = np.split(obs["image"].reshape(7, 7, 21), [11, 17], axis=-1)
    codes = np.stack([part.argmax(-1) for part in (kinds, colours, states)], axis=-1)
    np.testing.assert_array_equal(codes, truth["image"])
    assert obs["image"].sum() == 7 * 7 * 3


def test_minigrid_with_wrappers_of_its_own_is_left_alone() -> None:
    need("minigrid")
    from minigrid.wrappers import ImgObsWrapper, RGBImgPartialObsWrapper

    def pictures() -> Any:
        return ImgObsWrapper(RGBImgPartialObsWrapper(gymnasium.make("MiniGrid-Empty-5x5-v0")))

    assert make_env(pictures).observation_space == spaces.Dict(image=spaces.Box(0, 255, (56, 56, 3), np.uint8))


def test_bytes_too_few_for_a_picture_are_numbers() -> None:
    class Table(Blinker):
        observation_space = spaces.Box(0, 255, (7, 7, 3), np.uint8)

        def frame(self, t: int) -> Any:
            return np.full((7, 7, 3), t, np.uint8)

    env = make_env(Table)
    assert env.observation_space == spaces.Dict(state=spaces.Box(0, 255, (7, 7, 3), np.float32))
    assert env.reset()[0]["state"].dtype == np.float32


# Crafter


def test_crafter_ends_by_death_or_by_time_and_counts_achievements() -> None:
    need("crafter")
    env = make_env("CrafterReward-v1", max_episode_steps=3)
    assert env.observation_space["image"].shape == (64, 64, 3)  # type: ignore[index]
    assert env.action_space == spaces.Discrete(17)
    _, info = env.reset(seed=0)
    assert len(info["achievements"]) == 22 and not any(info["achievements"].values())
    player = env.unwrapped._env._player  # type: ignore[attr-defined]
    player.achievements["collect_wood"] = 2
    _, reward, terminated, truncated, info = env.step(0)
    assert reward == 1.0 and info["achievements"]["collect_wood"] == 2
    assert [(terminated, truncated), *(env.step(0)[2:4] for _ in range(2))] == [(False, False)] * 2 + [(False, True)]
    player.health = 0  # the simulator goes on beyond its limit
    assert env.step(0)[2:4] == (True, False)
    silent = make_env("crafter/noreward")
    silent.reset(seed=0)
    silent.unwrapped._env._player.achievements["collect_wood"] = 2  # type: ignore[attr-defined]
    assert silent.step(0)[1] == 0
    with pytest.raises(EnvError, match="It has: crafter/reward"):
        make_env("crafter/score")


def test_crafter_is_decided_by_its_seed_and_films_without_a_trace() -> None:
    need("crafter")
    env, filmed = make_env("crafter/reward"), make_env("crafter/reward", render_mode="rgb_array", render_size=90)
    first, second = (e.reset(seed=0)[0]["image"] for e in (env, filmed))
    np.testing.assert_array_equal(first, second)
    world = env.unwrapped._env._world  # type: ignore[attr-defined]
    for creatures in world.chunks.values():  # walked through in an order that is always the same
        index = [world.objects.index(creature) for creature in creatures]
        assert index == sorted(index)
    for e in (env, filmed):
        e.unwrapped._env._step = 250  # type: ignore[attr-defined]  # at night pictures are drawn with noise
    for _ in range(3):
        here, there = env.step(1), filmed.step(1)
        np.testing.assert_equal(here[:4], there[:4])
        assert filmed.render().shape == (90, 90, 3)  # type: ignore[union-attr]
    assert world.daylight < 0.5
    assert (env.reset(seed=1)[0]["image"] != first).any()


# MuJoCo and dm_control


@pytest.mark.parametrize("name", [f"{name}-v5" for name in MUJOCO])
def test_mujoco_tasks_step(name: str) -> None:
    env = make_env(name)
    for obs, *_ in rollout(env, 3)[1:]:
        assert obs["state"] in env.observation_space["state"]  # type: ignore[index]


@pytest.mark.parametrize("name", ["dog-run", "humanoid_CMU-run", "manipulation-reach_site_features"])
def test_dm_control_tasks_step(name: str) -> None:
    env = make_env(f"dmc/{name}")
    for obs, *_ in rollout(env, 3)[1:]:
        assert obs in env.observation_space


def test_composer_tasks_keep_their_time_limit_and_draw_pictures() -> None:
    name = "dmc/manipulation-reach_site_features"
    env = make_env(name)
    assert env.spec is not None and env.spec.max_episode_steps == 250
    results = rollout(env, 125)
    assert [result[3] for result in results[1:]] == [False] * 124 + [True]
    assert [result[3] for result in rollout(make_env(name, max_episode_steps=3), 2)[1:]] == [False, True]
    with pytest.raises(EnvError, match="Did you mean dmc/manipulation-reach_site_features"):
        make_env("dmc/manipulation-reach_site_vision")


def test_minigrid_passes_its_check() -> None:
    """The mission, a text that no agent sees, is not looked at."""
    need("minigrid")
    findings, _ = check("MiniGrid-Empty-5x5-v0", steps=60)
    assert not [finding for finding in findings if finding.severity != "note"]
