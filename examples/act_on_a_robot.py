"""Acting from an exported folder: numpy and onnxruntime, no torch.

    python examples/act_on_a_robot.py runs/slalom/export_nfe1

Without a folder, an untrained policy is exported first, which needs torch.
"""

import sys
import tempfile
import time
from collections import deque

import numpy as np

from flowleap.policy.deploy.runtime import ExportedPolicy


class FakeRobot:
    """Stands for a driver: random observations in, key -> [*shape] in real units; actions [A] out."""

    def __init__(self, spec):
        self.spec, self.rng = spec, np.random.default_rng(0)

    def read(self):
        keys = self.spec.observations.items()
        return {key: self.rng.uniform(size=known.shape).astype(known.dtype) for key, known in keys}

    def command(self, action):
        assert action.shape == (self.spec.action_dim,)


def drive(policy, robot, chunks):
    """Observe, choose a chunk, execute it at the control rate, and again; return the latencies in s."""
    spec, latencies = policy.spec, []
    history = deque([robot.read()] * spec.n_obs_steps, maxlen=spec.n_obs_steps)  # the last To frames
    for _ in range(chunks):
        start = time.perf_counter()
        obs = {key: np.stack([frame[key] for frame in history])[None] for key in history[0]}  # [1, To, ...]
        actions = policy.act(obs)[0]  # [Ta, A]
        latencies.append(time.perf_counter() - start)
        for action in actions:
            robot.command(action)
            time.sleep(1 / (spec.control_hz or 10))
            history.append(robot.read())
    return latencies


def export_an_untrained_policy(scratch):
    """Write a small policy for a robot with six joints; return its exported folder."""
    from flowleap.policy.core.spec import ObsKey, Spec
    from flowleap.policy.deploy.export import export
    from flowleap.policy.policy import Policy

    spec = Spec({"joints": ObsKey((6,))}, action_dim=6, control_hz=50.0).with_window(2, 16, 8)
    names = {"objective": "isd", "backbone": "mlp", "encoder": "lowdim"}
    policy = Policy(spec, {part: {"name": name} for part, name in names.items()})
    samples = np.random.default_rng(0).uniform(-1, 1, (100, 6)).astype(np.float32)
    policy.normalizer.fit({"joints": samples, "action": samples})
    policy.save(f"{scratch}/checkpoint")
    export(f"{scratch}/checkpoint", f"{scratch}/export", steps=1)
    return f"{scratch}/export"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        folder = sys.argv[1] if sys.argv[1:] else export_an_untrained_policy(scratch)
        policy = ExportedPolicy.load(folder)
    latencies = drive(policy, FakeRobot(policy.spec), chunks=10)
    print(f"{len(latencies)} chunks, {1e3 * np.median(latencies):.2f} ms each")
