"""Map distillation: a flow map learnt from the velocity of a network that is trained already. The two-stage baseline.

Flow matching first, then a student of one step: Consistency Policy's way (arXiv 2405.07503) in terms of flow maps. iSD
takes the same targets from the network in training, and needs neither a teacher nor a second stage.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch

from flowleap.policy.core.registry import Option
from flowleap.policy.flow import samplers
from flowleap.policy.flow.derivatives import Derivative, total_derivative, value_and_derivative
from flowleap.policy.flow.draws import FlowBatch
from flowleap.policy.flow.flow_map import FlowMap
from flowleap.policy.flow.objectives import Sampling, Terms, objective, off_rows, squared_error, teacher_of

Teacher = Annotated[
    str | None,
    Option("run or checkpoint of the policy to distil, trained on the same data; required to train"),
]
Start = Annotated[
    Literal["teacher", "random"], Option("the first weights; teacher: its own, of the same network")
]
Form = Annotated[
    Literal["eulerian", "lagrangian"],
    Option("which identity of the flow map holds the student to the teacher"),
]


@objective("distillation", Sampling(samplers.leap_sampler, guided=False), diagonal=0.25)
def distillation(
    u: FlowMap,
    batch: FlowBatch,
    *,
    teacher: Teacher = None,
    start: Start = "teacher",
    form: Form = "eulerian",
    derivative: Derivative = "difference",
) -> Terms:
    """Map distillation from a frozen velocity v_T (arXiv 2406.07507, 2505.18825): one step in two stages.

    eulerian     |u(x_t,t,s) - sg[v_T(x_t,t) - (t - s) D_{v_T} u]|^2
    lagrangian   |d_s X - sg[v_T(X,s)]|^2,   X = x_t - (t - s) u(x_t,t,s),   d_s X = u - (t - s) d_s u
    Rows with s = t hold u(x_t,t,t) to v_T in both forms. `derivative` is of the Eulerian form; the other one needs the
    exact derivative, through which the gradient goes. `teacher` and `start` are what the training begins with.
    """
    guide = teacher_of(batch)
    if form == "lagrangian":
        u_ts, ds_u = value_and_derivative(
            u, (batch.x_t, batch.t, batch.s), (None, None, torch.ones_like(batch.s))
        )
        with torch.no_grad():
            target = guide.velocity(batch.x_t - batch.gap * u_ts, batch.s)
        return {"lmd": squared_error(u_ts - batch.gap * ds_u, target, u.free)}
    average = u.average_velocity(batch.x_t, batch.t, batch.s)
    with torch.no_grad():
        target = guide.velocity(batch.x_t, batch.t)
    off, rows = off_rows(u, batch)
    velocity, known = (x if batch.off is None else x[batch.off] for x in (target, average.detach()))
    tangents = (velocity, torch.ones_like(rows.t), None)
    correction = rows.gap * total_derivative(off, (rows.x_t, rows.t, rows.s), tangents, derivative, known)
    if batch.off is not None:
        correction = torch.zeros_like(target).index_copy(0, batch.off, correction)
    return {"emd": squared_error(average, target - correction, u.free)}
