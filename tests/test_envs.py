"""Environments: names and their errors, observation spaces, dm_control's rules, vectors, resumed episodes."""

import inspect
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from envs import OPTIONS, EnvError, get_states, make_env, make_envs, rendering, restore, set_states
from envs.wrappers import FlatDict, Resumable

ROOT = Path(__file__).parent.parent


class Probe(gymnasium.Env[Any, Any]):
    """Shows a sample of whatever observation space it is given; ends after three steps."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.observation_space = space

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self.observation_space.sample(), 1.0, self.steps == 3, False, {}


class Counter(Probe):
    """Counts up; the start is drawn from `np_random`, or from the operating system if `restless`."""

    def __init__(self, restless: bool = False) -> None:
        super().__init__(spaces.Box(-1e9, 1e9, (1,), np.float64))
        self.restless = restless

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        random = np.random.default_rng() if self.restless else self.np_random
        self.count = float(random.integers(2**20))
        return np.array([self.count]), {}

    def step(self, action: Any) -> Any:
        self.count += 1
        return np.array([self.count]), *super().step(action)[1:]


def restless() -> Counter:
    return Counter(restless=True)


# Names


@pytest.mark.parametrize("name", ["dmc/ball_in_cup-catch", "dm_control/ball_in_cup-catch-v0"])
def test_both_spellings_of_a_dm_control_task(name: str) -> None:
    assert set(make_env(name).observation_space.spaces) == {"position", "velocity"}  # type: ignore[attr-defined]


def test_file_names_reach_classes_and_factories(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import gymnasium\ndef make():\n    return gymnasium.make('CartPole-v1')\n")
    assert make_env(f"{file}:make").spec.id == "CartPole-v1"  # type: ignore[union-attr]
    with pytest.raises(EnvError, match=r"no class or function 'Make'. It has: .*mine.py:make"):
        make_env(f"{file}:Make")
    env = make_env(f"{__file__}:Counter")
    assert type(env.unwrapped).__name__ == "Counter"


def test_module_names_import_the_module_that_registers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "registers_one.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('Mine-v0', 'gymnasium.envs.classic_control:PendulumEnv', max_episode_steps=7)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert make_env("registers_one:Mine-v0").spec.max_episode_steps == 7  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CartPol-v1", "Did you mean: `CartPole`"),
        ("walker-walk", "dmc/walker-walk"),
        ("dmc/walker-wlk", "Did you mean dmc/walker-walk"),
        ("dmc/nothing-here", "dmc/cheetah-"),
        ("nomodule:Env-v0", "pip install nomodule"),
        ("nowhere/file.py:Class", "no file nowhere/file.py"),
        (dict, "must give a gymnasium.Env"),
    ],
)
def test_wrong_names_are_answered_with_what_to_do(name: Any, message: str) -> None:
    with pytest.raises(EnvError, match=message):
        make_env(name)


def test_a_missing_package_is_answered_with_its_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(EnvError, match=r'pip install "mbrl-toolkit\[atari\]"'):
        make_env("ALE/Pong-v5")
    for module in ("gymnasium.envs.mujoco", "gymnasium.envs.mujoco.half_cheetah_v5"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EnvError, match=r'pip install "gymnasium\[mujoco\]"'):
        make_env("HalfCheetah-v5")


# Observation spaces


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (spaces.Box(-1, 1, (3,), np.float64), {"state": spaces.Box(-1, 1, (3,))}),
        (spaces.Box(0, 9, (), np.int32), {"state": spaces.Box(0, 9, (1,))}),
        (spaces.Discrete(5), {"state": spaces.Discrete(5)}),
        (spaces.MultiDiscrete([2, 3]), {"state": spaces.Box(0, 1, (5,))}),
        (spaces.Box(0, 255, (64, 48, 3), np.uint8), {"image": spaces.Box(0, 255, (64, 48, 3), np.uint8)}),
        (spaces.Box(0, 255, (4, 64, 48), np.uint8), {"image": spaces.Box(0, 255, (64, 48, 4), np.uint8)}),
        (spaces.Box(0, 255, (64, 48), np.uint8), {"image": spaces.Box(0, 255, (64, 48, 1), np.uint8)}),
        (spaces.Box(0, 255, (4, 84, 84, 3), np.uint8), {"image": spaces.Box(0, 255, (84, 84, 12), np.uint8)}),
        (spaces.Box(0, 255, (2, 3, 84, 96), np.uint8), {"image": spaces.Box(0, 255, (84, 96, 6), np.uint8)}),
        (spaces.Box(0, 1, (3, 32, 48), np.float32), {"image": spaces.Box(0, 255, (32, 48, 3), np.uint8)}),
        (spaces.Box(0, 1, (3, 3, 4), np.float32), {"state": spaces.Box(0, 1, (3, 3, 4))}),
        (
            spaces.Dict({"arm": spaces.Dict({"angle": spaces.Box(-1, 1, (2,))}), "mode": spaces.Discrete(3)}),
            {"arm/angle": spaces.Box(-1, 1, (2,)), "mode": spaces.Discrete(3)},
        ),
        (spaces.Tuple((spaces.Discrete(2), spaces.Box(0, 1, (2,)))),
         {"0": spaces.Discrete(2), "1": spaces.Box(0, 1, (2,))}),
    ],
)  # fmt: skip
def test_observations_become_a_flat_dict(space: spaces.Space[Any], expected: dict[str, Any]) -> None:
    env = make_env(lambda: Probe(space))
    assert env.observation_space == spaces.Dict(expected)
    for obs in (env.reset()[0], env.step(0)[0]):
        for key, box in expected.items():
            assert obs[key] in box and np.asarray(obs[key]).dtype == box.dtype


def test_frames_and_channels_stay_together() -> None:
    """Channels first or last: frame by frame, and each frame whole."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 20, 30)).astype(np.uint8)
    expected = np.concatenate([np.moveaxis(frame, 0, -1) for frame in frames], -1)
    for stack in (frames, np.moveaxis(frames, 1, -1)):
        space = spaces.Box(0, 255, stack.shape, np.uint8)
        env = FlatDict(Probe(space))
        channels = env._flat(stack)["image"]
        assert channels.shape == (20, 30, 6)
        assert sorted(map(bytes, np.moveaxis(channels, -1, 0))) == sorted(map(bytes, np.moveaxis(expected, -1, 0)))


def test_pictures_of_floats_become_bytes() -> None:
    env = FlatDict(Probe(spaces.Box(0, 1, (16, 16, 3), np.float32)))
    assert env._flat(np.full((16, 16, 3), 0.5, np.float32))["image"].max() == 128


def test_the_options_of_every_environment_are_those_of_make_env() -> None:
    known = inspect.signature(make_env).parameters
    assert {name: known[name].default for name in OPTIONS} == OPTIONS


def test_parts_of_an_observation_that_would_have_one_name_are_refused() -> None:
    box = spaces.Box(-1, 1, (2,))
    with pytest.raises(EnvError, match="the same name, 'a/b'"):
        make_env(lambda: Probe(spaces.Dict({"a/b": box, "a": spaces.Dict({"b": box})})))


def test_unsupported_observations_are_named() -> None:
    with pytest.raises(EnvError, match=r"Text under the key 'words' .* supported are Box, Discrete"):
        make_env(lambda: Probe(spaces.Dict({"words": spaces.Text(3)})))


# Repeats and limits


def rollout(env: gymnasium.Env[Any, Any], steps: int) -> list[list[Any]]:
    """Observations, rewards, terminated, truncated of an episode's first steps, with fixed random actions."""
    env.reset(seed=0)
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, *(env.action_space.shape or ())))
    results = [env.step(action.astype(np.float32)) for action in actions]
    return [list(column) for column in zip(*results)][:4]


def test_dm_control_repeats_actions_and_adds_up_rewards() -> None:
    twice, once = make_env("dmc/walker-stand"), make_env("dmc/walker-stand", action_repeat=1)
    assert twice.get_wrapper_attr("action_repeat") == 2
    twice.reset(seed=3)
    once.reset(seed=3)
    for action in np.random.default_rng(0).uniform(-1, 1, (20, 6)).astype(np.float32):
        obs, reward, *_ = twice.step(action)
        rewards = [once.step(action) for _ in range(2)]
        assert reward == rewards[0][1] + rewards[1][1]
        np.testing.assert_equal(obs, rewards[1][0])
    assert reward > 0


def test_dm_control_agrees_with_the_suite_itself() -> None:
    from dm_control import suite

    env = make_env("dmc/walker-walk", action_repeat=1)
    env.reset(seed=0)
    raw = suite.load("walker", "walk")
    raw.reset()
    with raw.physics.reset_context():
        raw.physics.set_state(env.unwrapped._env.physics.get_state())  # type: ignore[attr-defined]
    for action in np.random.default_rng(0).uniform(-1, 1, (5, 6)):
        obs, reward, *_ = env.step(action)
        truth = raw.step(action)
        np.testing.assert_allclose(reward, truth.reward, rtol=1e-6)
        for key, value in truth.observation.items():
            np.testing.assert_allclose(obs[key], np.atleast_1d(value), rtol=1e-4, atol=1e-5)


def test_dm_control_truncates_at_its_time_limit() -> None:
    env = make_env("dmc/pendulum-swingup")
    assert env.spec is not None and env.spec.max_episode_steps == 1000
    _, rewards, terminated, truncated = rollout(env, 500)
    assert len(rewards) == 500 and truncated == [False] * 499 + [True] and not any(terminated)
    _, _, terminated, truncated = rollout(make_env("dmc/pendulum-swingup", max_episode_steps=5), 3)
    assert truncated == [False, False, True] and not any(terminated)


def test_dm_control_terminates_where_the_discount_is_zero() -> None:
    env = make_env("dmc/lqr-lqr_2_1", action_repeat=1)
    assert env.action_space == spaces.Box(-1, 1, (1,))
    env.reset(seed=0)
    env.unwrapped._env.task.get_termination = lambda physics: 0.0  # type: ignore[attr-defined]
    *_, terminated, truncated, _ = env.step(np.zeros(1))
    assert terminated and not truncated


def test_gymnasium_repeats_stop_at_the_end_and_limits_count_every_step() -> None:
    env = make_env(Counter, action_repeat=2)
    env.reset()
    assert [env.step(0)[1:3], env.step(0)[1:3]] == [(2.0, False), (1.0, True)]
    for name in ("CartPole-v1", lambda: gymnasium.make("CartPole-v1")):
        env = make_env(name, action_repeat=2, max_episode_steps=4)
        env.reset(seed=0)
        assert [env.step(i)[3] for i in range(2)] == [False, True]
    with pytest.raises(EnvError, match="action_repeat must be 1 or more"):
        make_env("CartPole-v1", action_repeat=0)


def test_nested_actions_are_played_again() -> None:
    space = spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.MultiBinary(2)])})

    class Nested(Counter):
        action_space = space
        taken: ClassVar[list[Any]] = []

        def step(self, action: Any) -> Any:
            self.taken.append(action)
            return super().step(action)

    env = make_env(Nested)
    env.reset(seed=1)
    space.seed(0)
    for _ in range(3):
        env.step(space.sample())
    state = json.loads(json.dumps(env.get_state()))  # type: ignore[attr-defined]
    assert env.set_state(state)[0]  # type: ignore[attr-defined]
    assert len(Nested.taken) == 6
    np.testing.assert_equal(Nested.taken[:3], Nested.taken[3:])


# Vectors


def test_parallel_environments_give_the_same_rollout_and_resume_the_same() -> None:
    """Sync equals Async over automatic resets, and a state taken from one continues in the other."""
    sync, parallel = (make_envs("Pendulum-v1", 2, parallel=p, max_episode_steps=3) for p in (False, True))
    try:
        assert parallel.action_repeat == 1  # type: ignore[union-attr]
        assert parallel.metadata["autoreset_mode"] is gymnasium.vector.AutoresetMode.NEXT_STEP
        np.testing.assert_equal(sync.reset(seed=7), parallel.reset(seed=7))
        actions = np.random.default_rng(0).uniform(-2, 2, (12, 2, 1)).astype(np.float32)
        for action in actions[:7]:
            np.testing.assert_equal(sync.step(action)[:4], parallel.step(action)[:4])
        # The 7th step was the last of an episode: the next one resets.
        states, others = get_states(sync), get_states(parallel)
        assert states == others
        parallel.reset(seed=99)
        restored, last = restore(parallel, states)
        assert restored == [True, True] and last[3].all()
        for action in actions[7:]:
            np.testing.assert_equal(sync.step(action)[:4], parallel.step(action)[:4])
    finally:
        parallel.close()


def test_observations_of_a_vector_are_the_callers_to_keep() -> None:
    envs = make_envs("CartPole-v1", 2)
    first, _ = envs.reset(seed=0)
    kept = first["state"].copy()
    envs.step(np.array([0, 1]))
    np.testing.assert_array_equal(first["state"], kept)


# Resuming


def run(envs: Any, actions: Any) -> list[Any]:
    """Results of the steps; the caller's one buffer of actions is written over, as training loops do."""
    buffer, results = np.empty_like(actions[0]), []
    for action in actions:
        buffer[...] = action
        results.append(envs.step(buffer)[:4])
    return results


@pytest.mark.parametrize("before", [2, 5, 6, 8], ids=["first", "ended", "reset", "second"])
@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "HalfCheetah-v5", "dmc/walker-walk"])
def test_a_resumed_vector_goes_on_as_if_never_interrupted(name: str, before: int) -> None:
    """In the first episode (seeded), right after its end, right after the reset, in the second episode."""
    envs, fresh = (make_envs(name, 2, max_episode_steps=5, action_repeat=1) for _ in range(2))
    envs.reset(seed=5)
    envs.action_space.seed(0)
    actions = [envs.action_space.sample() for _ in range(16)]
    *_, last = run(envs, actions[:before])
    states = torch_round_trip(json.loads(json.dumps(get_states(envs))))
    fresh.reset(seed=1)
    fresh.step(actions[0])
    restored, again = restore(fresh, states)
    assert restored == [True, True]
    np.testing.assert_equal(again[:4], last)
    assert last[3].all() == (before == 5)
    np.testing.assert_equal(run(fresh, actions[before:]), run(envs, actions[before:]))


def torch_round_trip(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_what_cannot_be_restored_starts_a_new_episode() -> None:
    envs = make_envs(restless, 2)
    envs.reset(seed=0)
    envs.step(np.array([0, 0]))
    states = get_states(envs)
    restored, (obs, rewards, terminated, truncated, _) = restore(envs, states)
    assert restored == [False, False] and not rewards.any() and not terminated.any() and not truncated.any()
    np.testing.assert_array_equal(envs.step(np.array([0, 0]))[0]["state"], obs["state"] + 1)
    assert set_states(make_envs("CartPole-v1", 2), [{}, {}]) == [False, False]
    with pytest.raises(EnvError, match="1 saved episodes for 2"):
        set_states(envs, states[:1])


def test_one_environment_resumes_without_swallowing_an_action() -> None:
    env = make_env(Counter)
    env.reset(seed=0)
    first = env.step(0)[0]["state"]
    assert isinstance(env, Resumable)
    restored, obs = env.set_state(env.get_state())
    assert restored
    np.testing.assert_array_equal(obs["state"], first)
    np.testing.assert_array_equal(env.step(0)[0]["state"], first + 1)


# Rendering


def test_states_are_observed_without_opengl() -> None:
    """quadruped-escape would ask for a rendering context at each reset."""
    code = (
        "import sys, envs\n"
        "env = envs.make_env('dmc/quadruped-escape')\n"
        "env.reset(seed=0); env.step(env.action_space.sample())\n"
        "assert env.unwrapped._env.physics._contexts is None\n"
        "assert not {'OpenGL', 'glfw', 'torch'} & set(sys.modules)\n"
        "import os; assert 'MUJOCO_GL' not in os.environ\n"
    )
    environ = {key: value for key, value in os.environ.items() if key != "MUJOCO_GL"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environ, timeout=60)


def test_the_rendering_backend_is_one_that_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering.platform, "system", lambda: "Linux")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    loads = {"libEGL.so.1", "libOSMesa.so.8"}
    monkeypatch.setattr(rendering, "_loads", lambda name: name in loads)
    assert rendering.choose_backend() == "egl"
    loads.remove("libEGL.so.1")
    assert rendering.choose_backend() == "osmesa"
    loads.clear()
    with pytest.raises(EnvError, match=r"libegl1 .* libosmesa6"):
        rendering.choose_backend()
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    assert rendering.choose_backend() == "glfw"


def test_pictures_on_request_even_after_running_without() -> None:
    make_env("dmc/pendulum-swingup").reset(seed=0)
    try:
        env = make_env("dmc/pendulum-swingup", render_mode="rgb_array", render_size=64)
    except EnvError as error:
        pytest.skip(str(error))
    env.reset(seed=0)
    picture: Any = env.render()
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8 and picture.std() > 0
    env.close()
