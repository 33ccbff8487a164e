"""A task of one's own: an environment, a scripted expert, and the whole way from demonstrations to a score."""

import tempfile

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from flowleap.datasets.dataset import open_dataset
from flowleap.envs import Task, format_line, make_task, policy_actor, register_task, rollout, summary
from flowleap.envs.collect import collect
from flowleap.policy import ObsKey, Policy, Spec, Trainer, TrainerConfig


class ReachEnv(gymnasium.Env):
    """A point in the plane, moved by its velocity, is to come within 5 cm of a goal; lengths in metres."""

    def __init__(self, render_mode=None):
        self.observation_space = Dict({key: Box(-2, 2, (2,), np.float32) for key in ("position", "goal")})
        self.action_space = Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.goal = self.np_random.uniform(-1, 1, (2, 2)).astype(np.float32)
        return self._observe(), {}

    def step(self, action):
        self.position = np.clip(self.position + 0.1 * action, -2, 2).astype(np.float32)
        success = bool(np.linalg.norm(self.goal - self.position) < 0.05)
        return self._observe(), float(success), success, False, {"success": success}

    def _observe(self):
        return {"position": self.position, "goal": self.goal}


class ReachExpert:
    """Heads for the goal, slower when near: velocity [2] for one frame of observations."""

    def act(self, obs):
        return np.clip(5 * (obs["goal"] - obs["position"]), -1, 1).astype(np.float32)


def make_reach() -> Task:
    """Describe the task; what is left out means scored by `info["success"]`, recorded by `collect`."""
    spec = Spec({"position": ObsKey((2,)), "goal": ObsKey((2,))}, action_dim=2, control_hz=10.0)
    return Task("own/reach", ReachEnv, spec, 60, "the seed draws both.", lambda env, seed: ReachExpert())


if __name__ == "__main__":
    register_task("own/reach", make_reach)
    task = make_task("own/reach")
    with tempfile.TemporaryDirectory() as scratch:
        collect(task, f"{scratch}/reach.zarr", episodes=50)
        with open_dataset(f"{scratch}/reach.zarr") as dataset:
            windows = dataset.windows(n_obs_steps=1, horizon=8, n_action_steps=4)
        policy = Policy(windows.spec, {"objective": "isd", "backbone": "mlp", "encoder": "lowdim"})
        options = TrainerConfig(steps=200, warmup_steps=20, ema_decay=0.98, device="cpu", progress=False)
        trainer = Trainer(policy, windows, options, f"{scratch}/run")
        trainer.fit()
        result = rollout(task, policy_actor(trainer.ema_policy, 1), policy.spec, seeds=range(1000, 1020))
    print(format_line(summary(result, task)))
