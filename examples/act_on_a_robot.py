"""From demonstrations on a robot to a policy that drives it; the robot is a process of its own here.

    python examples/act_on_a_robot.py record data/robot.zarr            30 demonstrations
    flowleap train dataset=data/robot.zarr prefix=2 trainer.steps=600 run_dir=runs/robot
    flowleap export checkpoint=runs/robot
    flowleap eval checkpoint=runs/robot/export_nfe1 dataset=data/robot.zarr
    python examples/act_on_a_robot.py run runs/robot/export_nfe1

Acting needs numpy and onnxruntime, no torch. Without a word, an untrained policy is exported (with torch) and run.
"""

import multiprocessing
import sys
import tempfile
import time

import numpy as np

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey, Spec
from flowleap.policy.deploy.controller import Controller
from flowleap.policy.deploy.runtime import ExportedPolicy

HZ = 50.0
SPEED = 0.04  # that the robot can move in a step
WATCHDOG = 5  # steps without a command, after which it stays where it is
SPEC = Spec({"position": ObsKey((2,)), "goal": ObsKey((2,))}, action_dim=2, control_hz=HZ)


def robot(pipe):
    """A finger on a table: moves towards the commanded position [2] at its own clock, until nobody commands."""
    position, goal, target, silent, tick = np.zeros(2), np.zeros(2), np.zeros(2), 0, time.perf_counter()
    while True:
        while pipe.poll(max(0.0, tick - time.perf_counter())):
            word, value = pipe.recv()
            if word == "stop":
                return
            if word == "reset":
                position, goal = np.random.default_rng(value).uniform(-1, 1, (2, 2))
                target = position
            if word == "command" and np.isfinite(value).all():
                target, silent = np.asarray(value), 0
            if word == "read":
                pipe.send({"position": position.astype(np.float32), "goal": goal.astype(np.float32)})
        tick, silent = tick + 1 / HZ, silent + 1
        way = target - position if silent <= WATCHDOG else np.zeros(2)
        position = position + way * min(1.0, SPEED / max(np.linalg.norm(way), 1e-9))


class Driver:
    """Our end of the wire, called at the control rate."""

    def __enter__(self):
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("spawn").Process(target=robot, args=(theirs,), daemon=True)
        self.process.start()
        return self

    def __exit__(self, *details):
        self.pipe.send(("stop", None))
        self.process.join()

    def reset(self, seed):
        self.pipe.send(("reset", seed))
        self.tick = time.perf_counter()

    def read(self):
        self.pipe.send(("read", None))
        return self.pipe.recv()

    def command(self, action):
        self.pipe.send(("command", np.asarray(action)))
        self.tick += 1 / HZ
        time.sleep(max(0.0, self.tick - time.perf_counter()))


def record(path, episodes=30, steps=60):
    """Drive by a script, in place of a person, and write what was seen and commanded."""
    from flowleap.datasets.formats.zarr_writer import EpisodeWriter

    rng = np.random.default_rng(0)
    with Driver() as driver, EpisodeWriter(path, SPEC) as writer:
        for seed in range(episodes):
            driver.reset(seed)
            frames = []
            for _ in range(steps):
                obs = driver.read()
                way = obs["goal"] - obs["position"]
                action = obs["position"] + np.clip(way, -0.1, 0.1) + 0.01 * rng.normal(size=2)
                driver.command(action)
                frames.append({**obs, "action": action})
            writer.add({key: np.stack([frame[key] for frame in frames]) for key in frames[0]}, seed=seed)
    print(f"{path}: {episodes} episodes")


def run(folder, episodes=5, steps=80):
    """Let the policy drive; whatever goes wrong, the robot holds still."""
    policy = ExportedPolicy.load(folder, seed=0)
    reached, prefix = 0, min(2, policy.prefix)
    with (
        Driver() as driver,
        Controller(policy, continuity="prefix" if prefix else "naive", delay=2) as controller,
    ):
        for seed in range(1000, 1000 + episodes):
            driver.reset(seed)
            controller.reset()
            for _ in range(steps):
                obs = driver.read()
                try:
                    action = controller.step(obs)
                except FlowleapError as error:
                    print(f"held still: {error}", file=sys.stderr)
                    action = obs["position"]
                driver.command(action)
            obs = driver.read()
            reached += bool(np.linalg.norm(obs["goal"] - obs["position"]) < 0.05)
        counts = controller.counters.summary()
    late = f"{counts['late']} of {counts['steps']} steps late"
    print(f"reached {reached} of {episodes} goals; {late}; a chunk takes {counts['chunk_ms']['p50']:.2f} ms")


def untrained(scratch):
    """Export a policy for this robot that has seen nothing."""
    from flowleap.policy.deploy.export import export
    from flowleap.policy.policy import Policy

    policy = Policy(SPEC.with_window(2, 16, 8), {"objective": "isd", "backbone": "mlp", "encoder": "lowdim"})
    samples = np.random.default_rng(0).uniform(-1, 1, (100, 2)).astype(np.float32)
    policy.normalizer.fit({"position": samples, "goal": samples, "action": samples})
    export(policy, f"{scratch}/export", steps=1)
    return f"{scratch}/export"


if __name__ == "__main__":
    word, *rest = sys.argv[1:] or ["untrained"]
    if word == "untrained":
        with tempfile.TemporaryDirectory() as scratch:
            run(untrained(scratch), episodes=1)
    else:
        {"record": record, "run": run}[word](*rest)
