"""An objective with its options: the randomness of a batch, the scalar loss, and how its network is sampled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.registry import parameters_of
from flowleap.policy.flow import distillation  # noqa: F401, registers it
from flowleap.policy.flow.draws import Draw, FlowBatch
from flowleap.policy.flow.flow_map import FlowMap, over_chunk
from flowleap.policy.flow.objectives import OBJECTIVES, SAMPLING, SharedOptions, adaptive_weight
from flowleap.policy.flow.samplers import ANY_START


class Objective:
    """A named objective with its options: draws the randomness of a batch and computes the scalar loss.

    `config` holds its `name`, the options of that objective's function, those of `SharedOptions`; an unknown
    name or option, or a value out of range, raises `FlowleapError`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        if config.get("derivative") == "tangent":  # checkpoints before 0.2: exact as well
            config = {**config, "derivative": "jvp"}
        options = OBJECTIVES.options(config)
        self.name: str = config["name"]
        self.terms = OBJECTIVES[self.name]
        self.sampling = SAMPLING[self.name]
        self.options = {key: options.pop(key) for key in parameters_of(self.terms)}
        self.shared = SharedOptions(**options)
        self.draw = self.shared.draw
        if self.shared.guidance != 1.0 and not (self.sampling.guided and self.shared.obs_dropout):
            raise FlowleapError(
                "objective.guidance needs objective.obs_dropout > 0 and an objective that regresses on the "
                f"velocity, got guidance={self.shared.guidance:g} with '{self.name}'"
            )

    @property
    def config(self) -> dict[str, Any]:
        """Plain data from which the objective can be rebuilt; what is trained needs its teacher no more."""
        options = {key: None if key == "teacher" else value for key, value in self.options.items()}
        return {"name": self.name, **options, **asdict(self.shared)}

    def loss(
        self, flow_map: FlowMap, actions: Tensor, draw: Draw, teacher: FlowMap | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (scalar loss, detached mean of each term) for normalised action chunks [B,H,A].

        `teacher` is the flow map that gives the targets of `distillation` and of `targets=ema`.
        """
        batch, guidance = replace(FlowBatch.of(actions, draw), teacher=teacher), self.shared.guidance
        if self.shared.obs_dropout:
            blind = flow_map.without_observation()
            flow_map = flow_map.keep_observation(draw.keep)
            if teacher is not None:
                batch = replace(batch, teacher=teacher.keep_observation(draw.keep))
            if guidance != 1.0:
                with torch.no_grad():
                    guided = guidance * batch.v + (1 - guidance) * blind.velocity(batch.x_t, batch.t)
                batch = replace(batch, v=torch.where(over_chunk(draw.keep), guided, batch.v))
        terms = self.terms(flow_map, batch, **self.options)
        total = torch.stack(list(terms.values())).sum(0)
        loss = adaptive_weight(total, self.shared.p, self.shared.c)
        return loss, {k: v.detach().mean() for k, v in terms.items()}

    def sample(self, flow_map: FlowMap, noise: Tensor, grid: Tensor) -> Tensor:
        """Normalised action chunks [B,H,A] from noise [B,H,A] over a time grid, NFE = len(grid) - 1."""
        own = {name: self.options[name] for name in self.sampling.options}
        return self.sampling.sampler(flow_map, noise, grid, **own)

    @property
    def any_start(self) -> bool:
        """Whether sampling may begin at a time t < 1."""
        return self.sampling.sampler in ANY_START

    def draws(self, steps: int) -> int:
        """How many noises [H,A] a chunk takes at an NFE: all of a stochastic sampler, else the first alone."""
        return steps if steps == self.sampling.ancestral_at else 1

    def check_steps(self, steps: int | None) -> int:
        """Return the NFE to use (`None`: the objective's default); raise `FlowleapError` where unsupported."""
        if steps is None:
            return self.sampling.default_steps
        low, high = self.sampling.min_steps, self.sampling.max_steps
        if isinstance(steps, bool) or not isinstance(steps, int) or not low <= steps <= (high or math.inf):
            allowed = f"steps from {low} to {high}" if high else f"steps >= {low}"
            raise FlowleapError(f"objective '{self.name}' supports {allowed}, got {steps!r}")
        return steps
