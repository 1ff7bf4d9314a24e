"""`mbrl check-env ENV`: whether an environment can be trained on, what would go wrong, and the line that mends it.

Random actions first (`envs/checks.py`), then what training does: the agent acts through the driver, the replay fills,
one update. All of it in a process of its own, so that an environment that hangs or crashes is a finding too.
Exit code 0 where training would work, 2 where it would fail or be ruined.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from scripts.machine import free_memory, set_threads

if TYPE_CHECKING:
    from envs.findings import Finding, Watch

Report = dict[str, Any]
AGENT = "dreamer"
LARGE = 1e3
"""Observations above this need normalising."""


def main(argv: list[str]) -> int:
    arguments = parse(argv)
    report = examine_apart(arguments)
    print(json.dumps(report) if arguments.json else describe(report))
    return 0 if report["ok"] else 2


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mbrl check-env", description=__doc__)
    names = "as in mbrl train: CartPole-v1, dmc/walker-walk, path/to/file.py:MyEnv"
    parser.add_argument("env", metavar="ENV", help=names)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the text")
    parser.add_argument("--steps", type=int, default=1000, help="environment steps with random actions (1000)")
    parser.add_argument("--seconds", type=float, default=20.0, help="fewer steps, if they would take longer (20)")
    parser.add_argument("--patience", type=float, default=30.0, help="seconds after which a call has hung (30)")
    parser.add_argument("--action-repeat", type=int, help="steps of each action (dm_control 2, Atari 4, others 1)")
    parser.add_argument("--max-episode-steps", type=int, help="time limit in place of the environment's own")
    parser.add_argument("--observe", choices=("state", "pixels", "both"), default="state", help="as in mbrl train")
    parser.add_argument("--camera", help="as in mbrl train")
    parser.add_argument("--size", type=int, default=64, help="as in mbrl train (64)")
    parser.add_argument("--preset", default="laptop", help="whose networks and replay are planned with (laptop)")
    arguments = parser.parse_args(argv)
    if arguments.camera is not None and arguments.camera.lstrip("-").isdecimal():
        arguments.camera = int(arguments.camera)
    for name in ("steps", "seconds", "patience"):
        if not getattr(arguments, name) > 0:
            parser.error(f"argument --{name}: must be more than 0")
    return arguments


# ---- a process of its own ----------------------------------------------------------------------


def examine_apart(arguments: argparse.Namespace) -> Report:
    """`examine` in another process, and a finding where that hangs or dies.

    Raises:
        UserError: the command line makes no sense.
        RuntimeError: a defect of the check itself.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    where = "starting"
    with TemporaryDirectory() as folder:
        stack = Path(folder) / "stack.txt"
        process = context.Process(target=_work, args=(sender, arguments, str(stack)))
        process.start()
        sender.close()
        try:
            while receiver.poll(0.5) or process.is_alive():
                if not receiver.poll():
                    continue
                message = receiver.recv()
                if isinstance(message, dict):
                    return message
                if not isinstance(message, str):
                    raise message
                where = message
        except EOFError:
            pass
        finally:
            process.join(2)
            process.kill()
            process.join()
        return _lost(arguments, where, process.exitcode or 0, stack.read_text() if stack.exists() else "")


def _work(sender: Connection, arguments: argparse.Namespace, stack: str) -> None:
    """In the other process: sends what it is doing, then the report or what was raised."""
    from mbrl.errors import UserError

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever waits for the report ends this
    os.dup2(2, 1)  # what the environment prints is not the report
    with open(stack, "w") as file:
        faulthandler.enable(file)
        armed = 0.0

        def watch(where: str) -> None:
            nonlocal armed
            if not where:
                faulthandler.cancel_dump_traceback_later()
                armed = 0.0
                return
            sender.send(where)
            if time.monotonic() - armed > arguments.patience / 10:  # arming anew at every step would be slow
                faulthandler.dump_traceback_later(arguments.patience, exit=True, file=file)
                armed = time.monotonic()

        try:
            sender.send(examine(arguments, watch))
        except UserError as error:
            sender.send(error)
        except Exception:
            sender.send(RuntimeError(f"check-env itself failed:\n{traceback.format_exc()}"))
        finally:
            faulthandler.cancel_dump_traceback_later()
            faulthandler.enable()


def _lost(arguments: argparse.Namespace, where: str, code: int, stack: str) -> Report:
    """The report on an environment that took its process with it."""
    from envs.findings import Finding

    if "Timeout" in stack:
        check, what = "hang", f"{where} did not return within {arguments.patience:g} s"
        mend = f"if it is only slow: mbrl check-env {arguments.env} --patience {10 * arguments.patience:g}"
    else:
        end = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        check, what = "crash", f"{where} ended the whole process ({end})"
        mend = "look for what ends or crashes it in native code, with: python -X faulthandler"
    return _report(arguments, [Finding("error", check, "\n".join([what, *_frames(stack)[:3]]), mend)])


def _frames(stack: str) -> list[str]:
    """Of the main thread, which faulthandler writes last; innermost first."""
    import envs

    lines = stack.rpartition("most recent call first")[2].splitlines()
    ours = (envs.__path__[0], __file__)
    return [line.strip() for line in lines if line.startswith("  File") and not any(path in line for path in ours)]


# ---- the examination ---------------------------------------------------------------------------


def examine(arguments: argparse.Namespace, watch: Watch = lambda where: None) -> Report:
    """Everything, in this process.

    Raises:
        UserError: the command line makes no sense.
    """
    import envs
    from envs.checks import check
    from envs.findings import Broken

    names = ("action_repeat", "max_episode_steps", "observe", "camera", "size")
    kwargs = {name: getattr(arguments, name) for name in names}
    findings, measured = check(
        arguments.env, steps=arguments.steps, seconds=arguments.seconds, watch=watch, **kwargs
    )
    if any(finding.check == "construction" for finding in findings):
        return _report(arguments, findings, {}, measured)
    set_threads()
    vector = envs.make_envs(arguments.env, 1, **kwargs)
    rehearsal = Rehearsal(arguments, vector, watch)
    try:
        rehearsal.plan()
        findings += rehearsal.find(measured)
        if not any(finding.severity == "error" for finding in findings):
            findings += rehearsal.train()
    except Broken as broken:
        findings.append(broken.finding)
    finally:
        watch("")
        vector.close()
    return _report(arguments, findings, rehearsal.planned, measured)


def _report(
    arguments: argparse.Namespace, findings: list[Finding], plan: Report | None = None, measured: Report | None = None
) -> Report:
    order = ("error", "warning", "note")
    return {
        "env": arguments.env,
        "ok": not any(finding.severity == "error" for finding in findings),
        "findings": [asdict(f) for f in sorted(findings, key=lambda f: order.index(f.severity))],
        "plan": plan or {},
        "measured": measured or {},
    }


class Rehearsal:
    """The first steps of a training.

    Raises, each method:
        Broken: training would not get so far.
    """

    def __init__(self, arguments: argparse.Namespace, vector: Any, watch: Watch) -> None:
        from mbrl.errors import UserError
        from scripts.options import presets_of

        presets = presets_of(AGENT)
        if arguments.preset not in presets:
            raise UserError(f"there is no preset '{arguments.preset}' of {AGENT}; there are: {', '.join(presets)}")
        self.arguments, self.envs, self.watch = arguments, vector, watch
        preset = presets[arguments.preset]
        self.config, self.training = preset.agent, preset.training
        self.planned: Report = {}

    def plan(self) -> None:
        """Driver, agent and replay as training would make them."""
        from agents import make_agent
        from envs.findings import Broken, explained
        from mbrl.driver import Driver, autoreset_mode
        from mbrl.errors import UserError
        from mbrl.replay import Replay
        from mbrl.spaces import ActionSpec, is_image

        space, actions = self.envs.single_observation_space, self.envs.single_action_space
        try:
            spec = ActionSpec.of(actions)
        except UserError as error:
            raise Broken(explained("action-space", "actions", str(error))) from error
        try:
            self.driver = Driver(self.envs)
            self.agent: Any = make_agent(AGENT, self.config, space, actions)
            latents = self.agent.latent_spec()
            self.replay = Replay(self.driver.space, spec.size, 1, latents, self.training.replay)
        except UserError as error:
            raise Broken(explained("agent", "the agent cannot be made", str(error))) from error
        steps = min(self.replay.capacity, self.training.steps)
        self.planned = {
            "agent": f"{AGENT}/{self.arguments.preset}",
            "description": self.agent.describe(),
            "observations": {
                key: {"shape": list(entry.shape or ()), "encoder": "CNN" if is_image(entry) else "MLP"}
                for key, entry in self.driver.space.spaces.items()
            },
            "action": {"space": str(actions), "size": spec.size},
            "action_repeat": self.driver.action_repeat,
            "autoreset": autoreset_mode(self.envs).value,
            "parameters": self.agent.num_parameters,
            "steps": self.training.steps,
            "replay_steps": steps,
            "replay_bytes": steps * self.replay.bytes_per_step,
        }

    def find(self, measured: Report) -> list[Finding]:
        """What the plan and the sample together tell."""
        from envs.findings import Finding
        from mbrl.spaces import count_unlimited
        from scripts.train import size

        findings = []
        large = {key: x for key, x in measured.get("largest_observation", {}).items() if x > LARGE}
        if large and not self.config.model.normalise:
            values = ", ".join(f"'{key}' up to {value:.3g}" for key, value in large.items())
            what = f"large observations ({values}), of which the preset '{self.arguments.preset}' sees the logarithm: "
            what += "small differences between large values are lost"
            mend = f"mbrl train {self.arguments.env} --preset {self.arguments.preset} --config.model.normalise"
            findings.append(Finding("warning", "observation-scale", what, mend))
        unlimited = count_unlimited(self.envs.single_action_space)
        if unlimited:
            what = f"{unlimited} of the action's dimensions have no finite bounds: they are driven between -1 and 1, "
            what += "or within 2 of their one bound"
            mend = "self.action_space = spaces.Box(low, high)  # the range that matters"
            findings.append(Finding("warning", "action-bounds", what, mend))
        needed, free = self.planned["replay_bytes"], free_memory()
        if free is not None and needed > 0.8 * free:
            what = f"the replay will take {size(needed)} of {size(free)} of memory that are free"
            mend = f"mbrl train {self.arguments.env} --training.replay.gigabytes {free / 2e9:.1f}"
            findings.append(Finding("warning", "memory", what, mend))
        return findings

    def train(self) -> list[Finding]:
        """Act and remember as much as training begins to learn from, then one update; what the agent advises."""
        from envs.findings import Broken, Finding, calling
        from mbrl.errors import UserError
        from mbrl.randomness import seed_everything

        seed_everything(0)
        end = time.monotonic() + self.arguments.seconds
        needed = max(self.training.prefill, self.agent.min_steps)
        with calling(self.watch, "driver", "reset through the driver", (UserError,)):
            step = self.driver.reset(0)
        state = self.agent.initial_state(1)
        for count in range(needed):
            action, state = self.agent.act(step, state, explore=True)
            self.replay.add(step, self.agent.latents(state))
            with calling(self.watch, "driver", f"step {count + 1} through the driver", (UserError,)):
                step = self.driver.step(action)
            if time.monotonic() > end:
                break
        self.watch("")
        if not self.replay.ready(self.agent.min_steps):
            return []
        advice = self.agent.advise(self.replay)
        metrics = self.agent.update(self.replay)
        lost = [name for name, value in metrics.items() if not abs(float(value)) < float("inf")]
        if lost:
            what = f"after {needed} steps the first update gives non-finite {', '.join(lost)}"
            mend = "bring observations and rewards to a magnitude of about 1 (TransformObservation, TransformReward)"
            raise Broken(Finding("error", "update", what, mend))
        command = f"mbrl train {self.arguments.env}"
        return [Finding("warning", "hidden", found, f"{command} {option}") for found, option in advice]


# ---- in words ----------------------------------------------------------------------------------


def describe(report: Report) -> str:
    plan, measured, findings = report["plan"], report["measured"], report["findings"]
    count = {name: sum(f["severity"] == name for f in findings) for name in ("error", "warning", "note")}
    counted = ", ".join(f"{n} {name}{'s' * (n != 1)}" for name, n in count.items())
    lines = [f"{report['env']}   {counted}"]
    if plan:
        lines += _describe_plan(plan)
    if measured:
        lines += _describe_measured(measured)
    for finding in findings:
        first, *rest = finding["what"].splitlines()
        lines += ["", f"{finding['severity']:8} {finding['check']}: {first}", *(f"{'':9}{line}" for line in rest)]
        lines.append(f"{'':9}mend: {finding['mend']}")
    ready = f"training would work: mbrl train {report['env']}"
    return "\n".join([*lines, "", ready if report["ok"] else "not to be trained on before the errors are mended"])


def _describe_plan(plan: Report) -> list[str]:
    from scripts.train import size

    replay = f"{plan['replay_steps']:,} steps = {size(plan['replay_bytes'])} for {plan['steps']:,} environment steps"
    return [
        f"plan      {plan['description']}   {plan['agent']}",
        f"          action {plan['action']['space']}   action repeat {plan['action_repeat']}",
        f"          replay {replay}   autoreset {plan['autoreset']}",
    ]


def _describe_measured(measured: Report) -> list[str]:
    length, reward = measured["episode_length"], measured["reward"]
    ends = f"{measured['episodes']} episodes ended"
    if length:
        kinds = f"{measured['terminated']} terminated, {measured['truncated']} truncated"
        ends += f" ({kinds}; {length[0]} to {length[1]} steps)"
    limit = f"time limit {measured['time_limit']}" if measured["time_limit"] else "no time limit known"
    rewards = f"   rewards {reward[0]:.3g} to {reward[1]:.3g}" if reward else ""
    return [
        f"measured  {measured['steps']} steps, {measured['steps_per_second']:.0f} steps/s alone{rewards}",
        f"          {ends}   {limit}",
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
