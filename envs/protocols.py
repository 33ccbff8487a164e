"""Protocols by name: the conditions under which a score may stand beside a published one.

A published protocol fixes which episodes are run, how they start, how long they last and what counts. What belongs to
the policy (NFE, executed steps, weights, noise) stays free. Scores of two protocols are not compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial
from typing import Any, Literal

import gymnasium
import numpy as np

from flowleap.envs.task import EnvFactory, Metric, Observation, Task
from flowleap.envs.tasks import adroit, metaworld, metaworld_cloud, pusht
from flowleap.envs.tasks.base import Start, Step
from flowleap.policy.core.errors import FlowleapError, require_int, suggest
from flowleap.policy.core.spec import Spec

Counts = Literal["any step", "the last two steps of any chunk", "the last step of the episode"]
_LAST = 2  # steps of a chunk whose success the published runner of DP3 looks at: its To


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Conditions of an evaluation.

    Attributes:
        name: several entries share one where its conditions differ by task.
        tasks: a pattern of task names.
        about: one line for people.
        first_seed, episodes: seeds `first_seed`, `first_seed + 1`, ...; one each.
        fixed_seeds: whether these very episodes belong to the protocol.
        max_steps, metric: in place of the task's own; None keeps them.
        counts: the steps whose success counts.
        starts: how initial states are drawn; None is the task's own way.
        draw: seed -> the options of the environment's `reset` which do that.
        succeeds: what counts as success, read off a step's info, where it is not `info["success"]`.
        demonstrations: what the published policies were trained on.
        sees: the observations of the published policies, key -> shape; None where `differs` says.
        schedule: (evaluations spread over training, how many of them, the best, published scores average); None where
            they are of single checkpoints.
        published: where; empty for ours.
        differs: what of our conditions still differs from the published ones.
    """

    name: str
    tasks: str
    about: str
    first_seed: int = 100_000
    episodes: int = 50
    fixed_seeds: bool = False
    max_steps: int | None = None
    metric: Metric | None = None
    counts: Counts = "any step"
    starts: str | None = None
    draw: Callable[[int], dict[str, Any]] | None = None
    succeeds: Callable[[Mapping[str, Any]], bool] | None = None
    demonstrations: str = ""
    sees: Mapping[str, tuple[int, ...]] | None = None
    schedule: tuple[int, int] | None = None
    published: str = ""
    differs: str = ""

    def seeds(self, first: int | None, count: int | None) -> range:
        """The seeds to evaluate: the protocol's where an option is None.

        Raises:
            FlowleapError: an option is no such number, or contradicts the protocol.
        """
        for option, given, own in (("seed", first, self.first_seed), ("episodes", count, self.episodes)):
            if given is None:
                continue
            require_int(option, given, 0 if option == "seed" else 1, 2**63 - 1)
            if self.fixed_seeds and given != own:
                self.refuse(f"{option}={given}", f"it says {option}={own}")
        start = self.first_seed if first is None else first
        return range(start, start + (self.episodes if count is None else count))

    def refuse(self, option: str, reason: str) -> None:
        """Raise the error that `option` contradicts this protocol."""
        raise FlowleapError(
            f"protocol={self.name} allows no {option}: {reason}; leave it out, or say protocol={FLOWLEAP.name}, whose "
            "scores stand beside no published ones"
        )

    def apply(self, task: Task, spec: Spec) -> Task:
        """The task under these conditions, for a policy with the Ta of `spec`."""
        scoring = replace(task.scoring, metric=self.metric or task.scoring.metric)
        limited = replace(
            task,
            max_steps=self.max_steps or task.max_steps,
            seed_note=self.starts or task.seed_note,
            scoring=scoring,
        )
        if self.draw is None and self.succeeds is None and self.counts == "any step":
            return limited
        make_env = partial(ProtocolEnv, task.make_env, self, limited.max_steps, spec.n_action_steps)
        return replace(limited, make_env=make_env)

    def describe(self, task: Task) -> dict[str, Any]:
        """The conditions, JSON-ready, as a results file holds them; `task` is what `apply` returned."""
        return {
            "name": self.name,
            "max_steps": task.max_steps,
            "metric": task.scoring.metric,
            "success_counts": self.counts,
            "starts": task.seed_note,
            "demonstrations": self.demonstrations,
            "published": self.published,
            "schedule": list(self.schedule) if self.schedule else None,
            "differs": "; ".join(filter(None, (self.differs, self._sees_other(task)))),
        }

    def _sees_other(self, task: Task) -> str:
        """What a policy of the task sees in place of what the published ones do; empty where that is the same."""
        seen = {key: tuple(obs.shape) for key, obs in task.spec.observations.items()}
        if self.sees is None or seen == self.sees:
            return ""
        ours, theirs = (", ".join(f"{k} {list(n)}" for k, n in each.items()) for each in (seen, self.sees))
        return f"the policy sees {ours} (published: {theirs})"


class ProtocolEnv(gymnasium.Wrapper[Observation, np.ndarray, Observation, np.ndarray]):
    """Starts and succeeds as a protocol says.

    Where single steps count, episodes end with their time or with a success that counts: the published runners go on
    through a success at other steps.
    """

    def __init__(
        self,
        make_env: EnvFactory,
        protocol: Protocol,
        max_steps: int,
        n_action_steps: int,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(make_env(render_mode=render_mode))
        self._protocol, self._max_steps, self._chunk = protocol, max_steps, n_action_steps
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Start:
        """Start the episode of `seed`."""
        self._steps = 0
        draw = self._protocol.draw
        return self.env.reset(seed=seed, options=options if draw is None or seed is None else draw(seed))

    def step(self, action: np.ndarray) -> Step:
        """Step; success counts where the protocol says so."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._steps += 1
        succeeds, counts = self._protocol.succeeds, self._protocol.counts
        success = bool(succeeds(info) if succeeds else info["success"])
        if counts != "any step":
            terminated = success = success and self._counts()
        return obs, float(reward), terminated, truncated, {**info, "success": success}

    def _counts(self) -> bool:
        if self._protocol.counts == "the last step of the episode":
            return self._steps == self._max_steps
        begun = (self._steps - 1) // self._chunk * self._chunk
        return self._steps > min(begun + self._chunk, self._max_steps) - _LAST


FLOWLEAP = Protocol(
    name="flowleap",
    tasks="*",
    about="each task's own conditions; seeds and number of episodes are free",
)
DIFFUSION_POLICY = Protocol(
    name="diffusion_policy",
    tasks="pusht/*",
    about="Push-T as in Diffusion Policy's tables: its 50 initial states, mean largest coverage / 0.95",
    fixed_seeds=True,
    max_steps=300,
    metric="max_reward",
    starts="RandomState(seed) draws finger, block and angle as Diffusion Policy's runner does; the position is set "
    "before the angle, and one physics step follows.",
    draw=pusht.legacy_start,
    demonstrations="90 of the 206 human episodes (episodes=diffusion_policy), not mirrored (data.mirror=false)",
    published="arXiv 2303.04137; To=2, Ta=8, 3 training seeds; best checkpoint, and mean of the last ten",
    differs="gym-pusht in place of the original environment (the same states over these seeds and all recorded "
    "episodes); pusht/keypoints shows the block's 8 corners, the published policy sees 9 points",
)
DP3_METAWORLD = Protocol(
    name="dp3",
    tasks="metaworld/*",
    about="MetaWorld as in DP3's tables: 200 steps, success at the last two steps of any chunk",
    episodes=20,
    max_steps=200,
    metric="success",
    counts="the last two steps of any chunk",
    starts="the seed draws a fresh object and goal placement from the task's whole range; success counts at the last "
    "two steps of a chunk, and ends the episode.",
    demonstrations="10 of the scripted expert, 200 steps each (+task.kwargs.max_steps=200 hold_steps=200)",
    sees={metaworld.CLOUD: (512, 3), metaworld.ARM: (metaworld_cloud.ARM_DIM,)},
    schedule=(15, 5),
    published="arXiv 2403.03954 and its code; To=2, H=4, Ta=3, 10 steps, 3 training seeds of 3,000 epochs; mean of the "
    "five best of 15 evaluations during training, every 200 epochs from the first on",
    differs="MetaWorld V3 and MuJoCo 3 for V2 and mujoco_py; seeded placements (the published runner draws without a "
    "seed); a cloud of fewer than 512 points repeats some (published: adds zeros); demonstrations succeed at one step "
    "or more (published: at five), and their actions are clipped to [-1, 1]",
)
DP3_ADROIT = replace(
    DP3_METAWORLD,
    tasks="adroit/door",
    about="the Adroit door as in DP3's tables: open beyond 1.4 rad at the end of 300 steps",
    max_steps=300,
    counts="the last step of the episode",
    starts="the seed draws the door's position within 10 cm along each axis; the hand starts at rest. Success is the "
    "hinge beyond 1.4 rad at the last step.",
    succeeds=adroit.wide_open,
    demonstrations="10 of a trained expert",
    sees=None,
    differs="gymnasium-robotics' environment; seeded door positions; the last step counts (published: mean of the last "
    "two); the published policy sees 512 points and 24 numbers of the hand",
)
PROTOCOLS = (FLOWLEAP, DIFFUSION_POLICY, DP3_METAWORLD, DP3_ADROIT)


def find_protocol(name: str, task: str) -> Protocol:
    """The protocol of that name for a task.

    Raises:
        FlowleapError: there is none; the message names the nearest, or the tasks it is for.
    """
    named = [protocol for protocol in PROTOCOLS if protocol.name == name]
    if not named:
        known = dict.fromkeys(protocol.name for protocol in PROTOCOLS)
        raise FlowleapError(
            f"unknown protocol {name!r}; known: {', '.join(known)}{suggest(str(name), known)}"
        )
    for protocol in named:
        if fnmatch(task, protocol.tasks):
            return protocol
    others = ", ".join(protocol.tasks for protocol in named)
    raise FlowleapError(f"protocol={name} is for {others}, not for {task} (`flowleap list what=protocols`)")


def protocol_name(result: Mapping[str, Any]) -> str:
    """The protocol of results of `flowleap eval`; those that name none, as of version 0.1, are ours."""
    given = result.get("protocol")
    name = given.get("name") if isinstance(given, Mapping) else given
    return name if isinstance(name, str) and name else FLOWLEAP.name


def one_protocol(results: Iterable[Mapping[str, Any]]) -> str:
    """The name of the protocol that all of some results of `flowleap eval` share.

    Raises:
        FlowleapError: they have different ones.
    """
    names = set(map(protocol_name, results))
    if len(names) > 1:
        raise FlowleapError(
            f"scores of the protocols {' and '.join(sorted(names))} do not belong into one table or comparison: "
            "evaluate again with one of them (protocol=NAME)"
        )
    return names.pop()
