"""What a task is: its environment, how it is scored, who can demonstrate it, how recordings are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import gymnasium
import numpy as np

from flowleap.policy.core.spec import ObsKey, Spec

Metric = Literal["success", "max_reward", "sum_reward"]
Observation = dict[str, np.ndarray]
SCENE = "scene"  # beside the columns that `Recording.reset_to` gets: the episode's scene, as text


class Expert(Protocol):
    """A scripted demonstrator, made anew for every episode."""

    def act(self, obs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the action [A] (float32, inside the action space) for one observation frame."""
        ...


class EnvFactory(Protocol):
    """Builds the task's environment; picklable, because worker processes call it too."""

    def __call__(self, render_mode: str | None = None) -> gymnasium.Env[Observation, np.ndarray]:
        """Return a fresh environment; `render_mode` is None or "rgb_array"."""
        ...


@dataclass(frozen=True)
class Scoring:
    """How episodes of a task are scored.

    Attributes:
        metric: headline score: the rate of `success`, or the mean of every episode's best reward or of its return.
        reports_success: whether `info["success"]` can be true at all; where not, scores leave it out.
        modes: names of the equally good ways to succeed, two or more, of which the expert draws one uniformly
            at random; `info["mode"]` is then the index of the way taken, -1 while that is open. Empty where
            the task tells none apart.
        outcomes: further bools of `info` that are reported per episode beside success (true at any step).
        measures: numbers of `info` whose largest value `flowleap replay` reports beside the rewards.
    """

    metric: Metric = "success"
    reports_success: bool = True
    modes: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recording:
    """How recordings of a task are read, replayed and written.

    Attributes:
        translate: maps the columns `keys` of a foreign store, each [N, ...] over all frames, to the task's
            observation keys and `action`; None where stores hold those keys already. Image columns are passed on
            as they come: they need not be arrays in memory.
        keys: the columns that `translate` reads.
        reset_to: puts an environment into a recorded initial state and returns its observation; gets the first
            frame of the columns of one entry of `state_keys`, {key: [*shape]}, and, where the recording has it, the
            episode's scene as text under `SCENE`. None: no recorded state can be set, and `flowleap replay` needs
            the seeds that `flowleap collect` stores.
        state_keys: sets of recorded columns that each determine the initial state; the first one there is used.
        outcome: reads off the columns of one recorded episode, key -> [T, *shape] (those there are), what they say
            of its outcome: any of `success`, `max_reward`, `sum_reward` and the `outcomes` and `measures` of `Scoring`.
        info_columns: entries of `info`, present after every reset and step, that are collected as columns beside
            the observations, such as the simulator's state.
    """

    translate: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    keys: tuple[str, ...] = ()
    reset_to: Callable[[Any, Mapping[str, Any]], Observation] | None = None
    state_keys: tuple[tuple[str, ...], ...] = ()
    outcome: Callable[[Mapping[str, np.ndarray]], dict[str, float]] | None = None
    info_columns: Mapping[str, ObsKey] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One task, ready to be collected, trained on and evaluated.

    Attributes:
        name: `family/task`, for instance `pusht/keypoints`.
        make_env: environment factory. Observation space: a Dict of Boxes with exactly the Spec's keys; action
            space: a Box [A]. `info["success"]` is a bool after every step; a time limit is not its business. With
            images or point clouds in the Spec it has an attribute `images`, those that its next observation shall hold.
        spec: keys, shapes, action, control rate and origin; To, H and Ta are left at 1.
        max_steps: actions after which whoever drives the environment ends the episode.
        seed_note: one sentence on what a seed decides, printed beside every score.
        expert: `(env, seed) -> Expert`, or None where only people can demonstrate.
        demonstrator: what the expert is, for the attributes of stores that it collects.
        scoring: how episodes are scored; by default, by `info["success"]`.
        recording: how recordings are read and replayed; by default, those of `flowleap collect`.
        mirror: the task's mirror symmetry, or None: maps columns of its own observation keys and `action`, each
            [N, ...] in real units, to those of the mirrored world, where the same physics and goal hold exactly.
        shift_start: `(env, rng, strength) -> observation` moves the initial state of an environment that was just
            reset by normal numbers times `strength`, in units of half the range that it is drawn from; None: it cannot
            be moved.
    """

    name: str
    make_env: EnvFactory
    spec: Spec
    max_steps: int
    seed_note: str
    expert: Callable[[gymnasium.Env[Any, Any], int], Expert] | None = None
    demonstrator: str = "scripted"
    scoring: Scoring = Scoring()
    recording: Recording = field(default_factory=Recording)
    mirror: Callable[[Mapping[str, np.ndarray]], Observation] | None = None
    shift_start: Callable[[Any, np.random.Generator, float], Observation] | None = None
