"""Model-free baselines: Stable-Baselines3's own loop, on our environments and in our run directories."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from commands import refused
from gymnasium import spaces
from toys import ListLog

pytest.importorskip("stable_baselines3", reason="stable-baselines3 is missing: pip install -e '.[baselines]'")
pytest.importorskip("sb3_contrib", reason="sb3-contrib is missing: pip install -e '.[baselines]'")

import agents
import envs as environments
from agents import sb3
from agents.sb3_config import TABLES, DqnConfig, PpoConfig, SacConfig, tuned
from mbrl.checkpoint import latest, write_manifest
from mbrl.driver import Driver
from mbrl.errors import UserError
from mbrl.evaluation import evaluate
from mbrl.run import read_status
from mbrl.steps import Steps
from mbrl.trainer import Result
from mbrl.training import TrainConfig, train
from scripts.main import main

VECTOR = spaces.Dict({"a": spaces.Box(-1, 1, (3,), np.float32), "b": spaces.Discrete(4)})
PICTURE = spaces.Box(0, 255, (64, 64, 3), np.uint8)
BOX = spaces.Box(-2, 2, (2,), np.float32)
SMALL = SacConfig(learning_starts=20, batch_size=16, net_arch=(16,))
FEW = ["--training.eval-episodes", "1", "--training.final-episodes", "2", "--no-pictures"]


class Fixed(gymnasium.Env[Any, Any]):
    """Observes the step of its episode; each has five, and is then cut, or terminates."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, terminates: bool) -> None:
        self.terminates, self.time = terminates, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        over = self.time == 5
        return np.array([self.time], np.float32), 1.0, over and self.terminates, over and not self.terminates, {}


class Seeing(Fixed):
    """The same, with a picture beside it."""

    observation_space = spaces.Dict({"state": Fixed.observation_space, "image": PICTURE})

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        obs, info = super().reset(seed=seed)
        return self._with_picture(obs), info

    def step(self, action: Any) -> Any:
        obs, *rest = super().step(action)
        return self._with_picture(obs), *rest

    def _with_picture(self, obs: Any) -> Any:
        return {"state": obs, "image": np.full((64, 64, 3), 10 * self.time, np.uint8)}


class Identity(gymnasium.Env[Any, Any]):
    """Do what you see: 20 steps, each rewarded by how well."""

    def __init__(self, action_space: Any) -> None:
        self.action_space, self.time = action_space, 0
        self.discrete = isinstance(action_space, spaces.Discrete)
        self.observation_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return self._observe(), {}

    def _observe(self) -> Any:
        value = self.np_random.integers(2) if self.discrete else self.np_random.uniform(-1, 1)
        self.wanted = float(value)
        return np.array([self.wanted], np.float32)

    def step(self, action: Any) -> Any:
        reward = float(action == self.wanted) if self.discrete else -abs(float(action[0]) - self.wanted)
        self.time += 1
        return self._observe(), reward, False, self.time == 20, {}


def cut_short() -> Any:
    return Fixed(terminates=False)


def terminal() -> Any:
    return Fixed(terminates=True)


def seeing() -> Any:
    return Seeing(terminates=False)


def identity() -> Any:
    return Identity(spaces.Discrete(2))


def copying() -> Any:
    return Identity(spaces.Box(-1, 1, (1,), np.float32))


def steps(space: spaces.Dict, n: int, action_size: int) -> Steps:
    space.seed(0)
    samples = [space.sample() for _ in range(n)]
    obs = {key: torch.as_tensor(np.stack([sample[key] for sample in samples])) for key in space.spaces}
    no = torch.zeros(n, dtype=torch.bool)
    return Steps(obs, torch.zeros(n, action_size), torch.zeros(n), no, no, no)


def run(
    name: str,
    config: Any,
    env: Any,
    training: TrainConfig,
    num_envs: int = 1,
    directory: Path | None = None,
    **options: Any,
) -> tuple[Result, Any, Any, ListLog]:
    vector, log = environments.make_envs(env, num_envs, **options), ListLog()
    eval_envs = environments.make_envs(env, 2, **options)
    torch.manual_seed(0)
    agent: Any = agents.make_agent(name, config, vector.single_observation_space, vector.single_action_space)
    memory = agent.memory(num_envs, training.steps)
    resume = None if directory is None else latest(directory)
    result = train(
        agent, vector, memory, training, log, eval_envs=eval_envs, directory=directory, resume=resume,
        env_states=environments,  # type: ignore[arg-type]
    )  # fmt: skip
    return result, agent, memory, log


def brief(steps: int, **values: Any) -> TrainConfig:
    return TrainConfig(steps, eval_every=0, eval_episodes=1, final_episodes=2, log_every=50, **values)


# ---- what they see and do ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sac", "td3", "tqc", "crossq", "ppo"])
def test_vectors_are_joined_and_actions_are_ours(name: str) -> None:
    agent: Any = agents.make_agent(name, None, VECTOR, BOX)
    step = steps(VECTOR, 3, 2)
    seen = agent.read(step.obs)
    assert seen.shape == (3, 7)
    assert np.array_equal(seen[:, :3], step.obs["a"]) and seen[:, 3:].argmax(1).tolist() == step.obs["b"].tolist()
    for explore in (False, True):
        action, _ = agent.act(step, {}, explore)
        assert action.shape == (3, 2) and action.abs().max() <= 1
    assert "MlpPolicy   action Box(2)" in agent.describe()


def test_pictures_come_first_by_channels_and_join_vectors() -> None:
    space = spaces.Dict({"image": PICTURE, **VECTOR.spaces})
    agent: Any = agents.make_agent("ppo", None, space, spaces.Discrete(3))
    step = steps(space, 2, 3)
    seen = agent.read(step.obs)
    assert agent.policy_name == "MultiInputPolicy"
    assert np.array_equal(seen["image"][:, 1], step.obs["image"][..., 1])
    action, _ = agent.act(step, {}, True)
    assert action.sum(-1).tolist() == [1, 1] and set(action.unique().tolist()) == {0, 1}


def test_several_choices_are_one_hot_each() -> None:
    agent: Any = agents.make_agent("ppo", None, VECTOR, spaces.MultiDiscrete([2, 3]))
    assert agent.to_ours(np.array([[1, 2], [0, 1]])).tolist() == [[0, 1, 0, 0, 1], [1, 0, 0, 1, 0]]


def test_samples_of_dqn_are_epsilon_greedy() -> None:
    agent: Any = agents.make_agent("dqn", None, VECTOR, spaces.Discrete(5))
    step = steps(VECTOR, 500, 5)
    greedy, _ = agent.act(step, {}, False)
    agent.algorithm.exploration_rate = 0.5
    same = (agent.act(step, {}, True)[0] == greedy).all(-1).float().mean()
    assert same == pytest.approx(0.6, abs=0.08)  # half of them, and one in five of the others


@pytest.mark.parametrize(
    ("name", "observation", "action", "says"),
    [
        ("sac", VECTOR, spaces.Discrete(2), "sac cannot take the action space Discrete.2.; use ppo or dqn"),
        ("dqn", VECTOR, BOX, "dqn cannot take the action space .*; use sac or ppo"),
        ("dqn", VECTOR, spaces.MultiDiscrete([2, 2]), "use ppo"),
        ("ppo", VECTOR, spaces.Dict({"a": BOX, "b": spaces.Discrete(2)}), "use dreamer"),
        ("crossq", spaces.Dict({"image": PICTURE}), BOX, "vectors only"),
        ("sac", spaces.Dict({"image": spaces.Box(0, 255, (16, 16, 3), np.uint8)}), BOX, "too small"),
    ],
)
def test_spaces_that_an_algorithm_cannot_take(name: str, observation: Any, action: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        agents.make_agent(name, None, observation, action)


def test_the_command_refuses_in_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "use ppo or dqn" in refused(capsys, "train", "CartPole-v1", "--agent", "sac", "--runs-dir", str(tmp_path))


# ---- settings ------------------------------------------------------------------------------------


def test_tuned_settings_are_found_by_environment() -> None:
    config, num_envs = tuned(PpoConfig, "CartPole-v1") or (None, 0)
    assert config.n_steps == 32 and num_envs == 8
    assert tuned(SacConfig, "HalfCheetah-v5") == (SacConfig(learning_starts=10_000), 1)
    assert tuned(SacConfig, "dmc/hopper-hop") == (SacConfig(gradient_steps=2), 1)
    assert tuned(PpoConfig, "dmc/walker-walk") == (PpoConfig(normalize=True), 1)
    assert list(sb3.Sac.presets("dmc/walker-walk")) == ["tuned", "default"]
    assert list(sb3.Sac.presets("My-v0")) == ["default"]
    assert list(sb3.Ppo.presets("CartPole-v1")) == ["tuned", "default"]


@pytest.mark.parametrize("name", ["sac", "td3", "tqc", "crossq", "dqn", "ppo"])
def test_every_tuned_setting_builds(name: str) -> None:
    kind = agents.agent_class(name)
    actions = spaces.Discrete(3) if name == "dqn" else BOX
    for env in TABLES[agents.config_class(name)]:
        preset = kind.presets("dmc/x" if env == "dm_control" else f"{env}-v9")["tuned"]
        assert kind(preset.agent, VECTOR, actions).num_parameters > 0


def test_settings_reach_the_algorithm() -> None:
    config = PpoConfig(linear_schedule=True, learning_rate=0.1, clip_range=0.4, net_arch=(8,), activation="relu")
    algorithm = sb3.Ppo(config, VECTOR, BOX).algorithm
    assert (algorithm.lr_schedule(0.5), algorithm.clip_range(0.25)) == (0.05, 0.1)
    assert any(isinstance(module, torch.nn.ReLU) for module in algorithm.policy.modules())
    assert sb3.Sac(SacConfig(ent_coef=0.1), VECTOR, BOX).algorithm.ent_coef == 0.1
    assert sb3.Sac(SacConfig(), VECTOR, BOX).algorithm.ent_coef == "auto"


def test_the_help_shows_the_defaults_that_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for agent, shown in (("ppo", "(default: 32)"), ("dqn", "(default: 0.0023)")):
        with pytest.raises(SystemExit):
            main(["train", "CartPole-v1", "--agent", agent, "--runs-dir", str(tmp_path), "--help"])
        out = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert shown in out and "--training.eval-at" in out and "--training.update-ratio" not in out


# ---- the loop ------------------------------------------------------------------------------------


def test_steps_count_action_repeat_and_every_decision_after_the_warm_up_is_learnt_from() -> None:
    result, agent, memory, log = run("sac", SMALL, "Pendulum-v1", brief(100), action_repeat=2)
    assert (result.env_steps, agent.algorithm.num_timesteps, result.updates) == (100, 50, 30)
    assert memory.buffer.size() == 50
    assert [(step, mode) for step, mode, _ in log.evaluations] == [(100, "mode"), (100, "sample")]
    losses = [metrics for _, metrics in log.metrics if "train/loss/value" in metrics]
    assert losses and losses[-1]["time/updates"] == 30


@pytest.mark.parametrize("num_envs", [1, 2])
def test_an_episode_cut_by_time_is_bootstrapped_and_its_true_end_is_stored(num_envs: int) -> None:
    *_, memory, log = run("sac", SMALL, cut_short, brief(40), num_envs)
    assert {length for _, _, length in log.episodes} == {5} and len(log.episodes) == 8
    buffer, ends = memory.buffer, slice(0, 40 // num_envs)
    before, after = buffer.observations[ends, :, 0], buffer.next_observations[ends, :, 0]
    assert np.array_equal(after, before + 1)
    assert np.array_equal(buffer.dones[ends], after == 5) and np.array_equal(buffer.timeouts[ends], after == 5)


def test_a_terminal_end_is_not_bootstrapped() -> None:
    _, _, memory, _ = run("sac", SMALL, terminal, brief(20))
    buffer = memory.buffer
    assert buffer.dones[:20].sum() == 4 and buffer.timeouts[:20].sum() == 0


def test_evaluations_happen_at_the_steps_that_are_asked_for() -> None:
    config = PpoConfig(n_steps=16, batch_size=16)
    *_, log = run("ppo", config, "CartPole-v1", brief(60, eval_at=(11, 30)), num_envs=4)
    assert [step for step, mode, _ in log.evaluations if mode == "mode"] == [12, 32, 60]


def test_the_same_seed_gives_the_same_run_and_the_same_evaluation() -> None:
    runs = [run("sac", SMALL, "Pendulum-v1", brief(60)) for _ in range(2)]
    assert runs[0][3].evaluations == runs[1][3].evaluations
    vector = environments.make_envs("Pendulum-v1", 2)
    scores = [evaluate(runs[0][1], vector, 3, explore=explore).tolist() for explore in (True, True, False)]
    assert scores[0] == scores[1] != scores[2]


def test_an_environment_that_breaks_ends_its_episode() -> None:
    broken = {"left": 1}

    def make() -> Any:
        env = cut_short()
        step = env.step

        def breaking(action: Any) -> Any:
            if env.time == 3 and broken["left"]:
                broken["left"] = 0
                raise RuntimeError("broken")
            return step(action)

        env.step = breaking  # type: ignore[method-assign]
        return env

    result, _, memory, _ = run("sac", SMALL, make, brief(30))
    buffer = memory.buffer
    assert any("broke" in note for note in result.notes)
    assert result.env_steps == 30 and buffer.dones[3] and buffer.timeouts[3]
    assert buffer.next_observations[3, 0, 0] == 3 and buffer.observations[4, 0, 0] == 0


# ---- the run directory ---------------------------------------------------------------------------


def test_a_run_is_complete_loads_and_evaluates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["train", "Pendulum-v1", "--agent", "sac", "--steps", "60", "--runs-dir", str(tmp_path), *FEW]
    line += ["--config.learning-starts", "20", "--config.net-arch", "16", "--training.eval-at", "30"]
    assert main(line) == 0
    directory = tmp_path / "Pendulum-v1/sac/seed0"
    names = {path.name for path in directory.iterdir()}
    assert {"config.yaml", "status.json", "metrics.jsonl", "scores.jsonl", "checkpoint", "report.html"} <= names
    assert read_status(directory)["state"] == "finished" and read_status(directory)["versions"]["stable-baselines3"]
    agent, env = agents.load(directory), environments.make_env("Pendulum-v1")
    observation, _ = env.reset(seed=0)
    action, _ = agent.predict(observation)
    assert env.action_space.contains(action)
    again, _ = agents.load(directory).predict(observation)
    assert np.array_equal(action, again)
    capsys.readouterr()
    scores = []
    for _ in range(2):
        assert main(["evaluate", str(directory), "--episodes", "2", "--json"]) == 0
        scores.append(json.loads(capsys.readouterr().out))
    assert scores[0] == scores[1] and set(scores[0]) == {"mode", "sample"}


@pytest.mark.parametrize(
    ("name", "env", "config"),
    [
        ("sac", "Pendulum-v1", SMALL),
        ("dqn", "CartPole-v1", DqnConfig(learning_starts=20, net_arch=(16,))),
        ("ppo", "Pendulum-v1", PpoConfig(n_steps=16, batch_size=8, normalize=True, use_sde=True)),
    ],
)
def test_a_run_continues_where_it_stopped(name: str, env: str, config: Any, tmp_path: Path) -> None:
    _, before, memory, _ = run(name, config, env, brief(60), directory=tmp_path)
    vector = environments.make_envs(env, 2)
    scores = evaluate(before, vector, 0).tolist()
    loaded: Any = agents.load(tmp_path).agent
    assert evaluate(loaded, vector, 0).tolist() == scores
    assert loaded.updates == before.updates > 0
    result, after, longer, log = run(name, config, env, brief(100), directory=tmp_path)
    assert (result.env_steps, after.algorithm.num_timesteps) == (100, 100)
    assert result.updates > before.updates
    assert log.evaluations[0][0] == 100
    if memory.buffer is not None:
        assert longer.buffer.size() == 100
        assert np.array_equal(longer.buffer.observations[:60], memory.buffer.observations[:60])
        assert np.array_equal(longer.buffer.rewards[:60], memory.buffer.rewards[:60])


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("ppo", PpoConfig(n_steps=16, batch_size=8, use_sde=True)),
        ("sac", SacConfig(learning_starts=20, net_arch=(16,), use_sde=True)),
    ],
)
def test_an_evaluation_leaves_the_noise_of_the_training_alone(name: str, config: Any) -> None:
    _, agent, _, _ = run(name, config, "Pendulum-v1", brief(40))
    noisy = agent.algorithm.policy.action_dist if name == "ppo" else agent.algorithm.policy.actor.action_dist
    before = noisy.exploration_mat, noisy.exploration_matrices
    scores = [evaluate(agent, environments.make_envs("Pendulum-v1", 2), seed, explore=True).tolist() for seed in (0, 1)]
    assert scores[0] != scores[1]
    assert noisy.exploration_mat is before[0] and noisy.exploration_matrices is before[1]


def test_pictures_with_vectors_are_trained_on_and_stored(tmp_path: Path) -> None:
    config = SacConfig(learning_starts=14, batch_size=4, net_arch=(16,))
    result, *_ = run("sac", config, seeing, brief(16), directory=tmp_path)
    _, _, memory, _ = run("sac", config, seeing, brief(20), directory=tmp_path)
    before, after = (getattr(memory.buffer, name) for name in ("observations", "next_observations"))
    assert before["vector"][:, 0, 0].tolist() == [0, 1, 2, 3, 4] * 4
    assert np.array_equal(10 * after["vector"][:, 0, 0], after["image"][:, 0, 0, 0, 0])
    assert before["image"].shape == (20, 1, 3, 64, 64) and result.updates == 2


def test_a_signal_saves_and_the_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "count").touch()

    class Interrupting(Fixed):
        def step(self, action: Any) -> Any:
            with (tmp_path / "count").open("a") as file:
                file.write(".")
                if file.tell() == 33:
                    os.kill(os.getpid(), signal.SIGTERM)
            return super().step(action)

    def interrupting() -> Any:
        return Interrupting(terminates=False)

    result, *_ = run("sac", SMALL, interrupting, brief(60), directory=tmp_path)
    stored = latest(tmp_path)
    assert stored is not None and (result.signal, result.env_steps, stored.step) == (signal.SIGTERM, 33, 33)
    assert read_status(tmp_path)["state"] == "interrupted"
    result, _, memory, _ = run("sac", SMALL, interrupting, brief(60), directory=tmp_path)
    assert result.signal is None and result.env_steps == 60
    after = memory.buffer.next_observations[:60, 0, 0]
    assert after.tolist() == [1, 2, 3, 4, 5] * 12
    assert np.array_equal(memory.buffer.dones[:60, 0], after == 5)


def test_an_episode_that_cannot_be_continued_is_left(tmp_path: Path) -> None:
    run("sac", SMALL, cut_short, brief(33), directory=tmp_path)
    manifest = latest(tmp_path)
    assert manifest is not None
    path = manifest.path / "state.pt"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "loop": {**state["loop"], "envs": []}}, path)
    (manifest.path / "manifest.json").unlink()
    content = {key: value for key, value in manifest.manifest.items() if key not in ("files", "sha256")}
    write_manifest(manifest.path, content)
    result, _, memory, _ = run("sac", SMALL, cut_short, brief(60), directory=tmp_path)
    assert any("cut" in note for note in result.notes)
    assert memory.buffer.next_observations[30:38, 0, 0].tolist() == [1, 2, 3, 1, 2, 3, 4, 5]
    assert not memory.buffer.dones[30:37].any()


def test_a_full_buffer_is_stored_in_order(tmp_path: Path) -> None:
    config = SacConfig(learning_starts=20, batch_size=16, net_arch=(16,), buffer_size=25)
    _, _, memory, _ = run("sac", config, cut_short, brief(40), directory=tmp_path)
    assert memory.buffer.full and memory.buffer.pos == 15
    _, _, longer, _ = run("sac", config, cut_short, brief(40), directory=tmp_path)
    assert longer.buffer.full and longer.buffer.pos == 0
    rolled = np.roll(memory.buffer.observations, -15, axis=0)
    assert np.array_equal(longer.buffer.observations, rolled)


# ---- learning ------------------------------------------------------------------------------------


def test_ppo_learns_the_identity_task() -> None:
    config = PpoConfig(n_steps=64, batch_size=32, learning_rate=3e-3, gamma=0.5)
    result, *_ = run("ppo", config, identity, brief(1500))
    assert np.mean(result.scores["mode"]) > 15


def test_sac_learns_to_copy_its_observation() -> None:
    config = SacConfig(learning_starts=50, batch_size=64, gamma=0.0, learning_rate=3e-3, net_arch=(32,))
    result, *_ = run("sac", config, copying, brief(500))
    assert np.mean(result.scores["mode"]) > -4


def test_importing_agents_does_not_import_stable_baselines3() -> None:
    from test_imports import loaded_by

    assert not loaded_by("import agents, mbrl.training, scripts.options") & {"stable_baselines3", "sb3_contrib"}


def test_a_vector_can_begin_its_next_episodes_early() -> None:
    driver = Driver(environments.make_envs(cut_short, 2))
    step = driver.reset(0)
    for _ in range(5):
        assert driver.begin_episodes(step) is step
        step = driver.step(torch.zeros(2, driver.action_spec.size))
    assert step.is_last.all()
    step = driver.begin_episodes(step)
    assert step.is_first.all() and not step.is_last.any() and driver.decisions == 10
    step = driver.step(torch.zeros(2, driver.action_spec.size))
    assert not step.is_first.any() and driver.decisions == 12
