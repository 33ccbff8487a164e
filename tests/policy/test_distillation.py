"""Targets from another network: map distillation and averaged weights; none without an anchor; what a teacher is."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gaussian import GaussianMap
from test_objectives import gradient, make_batch, numeric_gradient, random_batch, small_net
from test_trainer import SPEC, make_trainer
from torch import Tensor

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey
from flowleap.policy.flow.derivatives import total_derivative
from flowleap.policy.flow.distillation import distillation
from flowleap.policy.flow.draws import DrawConfig
from flowleap.policy.flow.flow_map import FlowMap, over_chunk
from flowleap.policy.flow.objective import Objective
from flowleap.policy.flow.objectives import isd, squared_error
from flowleap.policy.policy import Policy
from flowleap.policy.training.teacher import teacher_for

FORMS: dict[str, tuple[dict[str, Any], float]] = {
    "eulerian, jvp": ({"form": "eulerian", "derivative": "jvp"}, 1e-20),
    "eulerian, difference": ({"form": "eulerian"}, 1e-8),
    "lagrangian": ({"form": "lagrangian"}, 1e-20),
}


class VelocityOf:
    """A network that knows the velocity of a Gaussian, and says so whatever s is: trained by flow matching."""

    def __init__(self, data: GaussianMap) -> None:
        self.data = data

    def __call__(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        return self.data.marginal_velocity(x, t)


def conditioned(net: Any, n: int = 64) -> FlowMap:
    return FlowMap(net, torch.zeros(n, 3, dtype=torch.float64))


@pytest.mark.parametrize("diagonal", [0.0, 0.5])
@pytest.mark.parametrize("form", FORMS)
def test_the_residual_vanishes_at_the_exact_map_of_the_teacher_alone(form: str, diagonal: float) -> None:
    options, tolerance = FORMS[form]
    batch = replace(make_batch(diagonal=diagonal), teacher=conditioned(VelocityOf(GaussianMap())))
    (exact,) = distillation(conditioned(GaussianMap()), batch, **options).values()
    assert float(exact.max()) < tolerance

    def bent(x: Tensor, t: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        return GaussianMap()(x, t, s, cond) + over_chunk(t - s) * x

    (wrong,) = distillation(conditioned(bent), batch, **options).values()
    assert float(wrong.mean()) > 1e-3
    assert bool((wrong[batch.t == batch.s] < tolerance).all())  # it is right on the diagonal
    (other,) = distillation(conditioned(GaussianMap(seed=1)), batch, **options).values()
    assert float(other.min()) > 1e-4  # the map of other data is wrong everywhere


@pytest.mark.parametrize("form", FORMS)
def test_gradients_go_into_the_student_alone(form: str) -> None:
    student, teacher = small_net(), small_net("transformer")
    cond = torch.randn(16, 3, dtype=torch.float64)
    u, batch = FlowMap(student, cond), replace(random_batch(), teacher=FlowMap(teacher, cond))
    (term,) = distillation(u, batch, **FORMS[form][0]).values()
    learnt = gradient(term.sum(), student)
    assert float(learnt.norm()) > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(g.requires_grad for g in (learnt,))
    (again,) = distillation(u, batch, **FORMS[form][0]).values()
    assert float(gradient(again.sum(), teacher).norm()) == 0.0
    x, t, s, gap = batch.x_t, batch.t, batch.s, batch.gap
    assert batch.teacher is not None
    if form != "lagrangian":  # the gradient of |u - constant|^2
        with torch.no_grad():
            v = batch.teacher.velocity(x, t)
            du = total_derivative(u, (x, t, s), (v, torch.ones_like(t), None), "jvp")
        by_hand = gradient(squared_error(u.average_velocity(x, t, s), v - gap * du).sum(), student)
        assert torch.allclose(learnt, by_hand, rtol=1e-3, atol=1e-5)
        return
    with torch.no_grad():
        target = batch.teacher.velocity(u.leap(x, t, s), s)
    weight, eps = student.input.weight, 1e-6

    def lagrangian() -> Tensor:
        slope = (u.leap(x, t, s + eps) - u.leap(x, t, s - eps)) / (2 * eps)
        return squared_error(slope, target).sum()

    (fresh,) = distillation(u, batch, form="lagrangian").values()
    (exact,) = torch.autograd.grad(fresh.sum(), weight)
    assert torch.allclose(
        exact.view(-1)[:3], numeric_gradient(lagrangian, weight, 1e-4), rtol=1e-2, atol=1e-4
    )


def test_without_its_anchor_self_distillation_holds_for_the_map_of_any_other_data() -> None:
    """And for the identity, u = 0; what the anchor says against them is the error of their velocity."""
    batch = make_batch()

    def standing_still(x: Tensor, t: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        return torch.zeros_like(x)

    right = isd(conditioned(GaussianMap()), batch, derivative="jvp")
    for net in (GaussianMap(seed=1), standing_still):
        terms = isd(conditioned(net), batch, derivative="jvp", anchor_weight=1.0)
        assert float(terms["sd"].max()) < 1e-20
        assert float(terms["fm"].mean()) > float(right["fm"].mean()) + 0.1
        without = isd(conditioned(net), batch, derivative="jvp", anchor_weight=0.0)
        assert float((without["fm"] + without["sd"]).max()) < 1e-20  # nothing is left to learn


def test_the_gap_grows_from_nothing_to_what_is_drawn() -> None:
    def drawn(progress: float, growth: float = 0.5, **options: Any) -> tuple[Tensor, Tensor]:
        draw = DrawConfig(gap_growth=growth, **options).draw(
            64, 4, 2, torch.Generator().manual_seed(0), progress
        )
        return draw.t, draw.s

    t, s = drawn(0.9)
    for progress, share in ((0.0, 0.0), (0.125, 0.25), (0.5, 1.0)):
        same, nearer = drawn(progress)
        assert torch.equal(same, t)
        assert torch.allclose(t - nearer, share * (t - s), atol=1e-6)
    assert torch.equal(drawn(0.0, growth=0.0)[1], s)  # off
    t, s = drawn(0.25, to_data=True)
    assert torch.allclose(s, t / 2)


@pytest.mark.parametrize("diagonal", [0.0, 0.5])
def test_targets_of_the_averaged_weights_are_those_of_the_teacher(diagonal: float) -> None:
    """With the exact map as the teacher they are the velocity of the data, whatever the student is."""
    batch = make_batch(diagonal=diagonal)
    off = batch.t > batch.s
    exact, student = GaussianMap(), conditioned(lambda x, t, s, cond: 0.3 * x)
    taught = isd(student, replace(batch, teacher=exact.flow_map(64)), derivative="jvp", targets="ema")
    target = exact(batch.x_t, batch.t, batch.s, batch.t)
    assert torch.allclose(taught["sd"][off], squared_error(0.3 * batch.x_t, target)[off])
    assert bool((taught["sd"][~off] == 0).all())
    assert torch.equal(taught["fm"], isd(student, batch, derivative="jvp")["fm"])
    with pytest.raises(FlowleapError, match=r"objective\.targets=ema takes that of the trainer"):
        isd(student, batch, targets="ema")


def test_the_trainer_takes_targets_from_its_average(tmp_path: Path) -> None:
    """At the first step both weights are the same, and so is the step; later they are not."""
    exact = {"name": "isd", "derivative": "jvp"}

    def quiet(policy: Policy) -> None:  # the average sees observations without noise
        policy.encoder.noise = 0.0  # type: ignore[assignment]

    own = make_trainer(tmp_path / "own", exact, quiet)
    averaged = make_trainer(tmp_path / "averaged", {**exact, "targets": "ema"}, quiet)
    assert own.teacher is None
    assert averaged.teacher is averaged.ema_policy
    losses = [
        [float(trainer.train_step(*trainer.batch())["sd"]) for _ in range(4)] for trainer in (own, averaged)
    ]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-4)
    assert losses[0][3] != pytest.approx(losses[1][3], rel=1e-4)


CONFIG: dict[str, Any] = {
    "objective": "flow_matching",
    "backbone": {"name": "mlp", "width": 16, "depth": 1},
    "encoder": {"name": "lowdim", "noise": 0.01},
    "head_sigma": 0.0,
}


@pytest.fixture
def taught(tmp_path: Path) -> Path:
    """The run of a small teacher."""
    make_trainer(tmp_path / "teacher", {"name": "flow_matching"}).fit()
    return tmp_path / "teacher"


def student(place: Path | str | None, spec: Any = SPEC, start: str = "teacher", **parts: Any) -> Policy:
    objective = {"name": "distillation", "teacher": place and str(place), "start": start}
    return Policy(spec, {**CONFIG, "objective": objective, **parts})


def test_a_student_takes_over_and_needs_its_teacher_no_more(taught: Path, tmp_path: Path) -> None:
    policy = student(taught)
    teacher = teacher_for(policy)
    assert teacher is not None
    state = teacher.policy.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in policy.state_dict().items())
    assert bool(policy.normalizer.fitted)
    assert teacher.notes["step"] == 12
    assert len(teacher.notes["sha256"]) == 64
    assert not any(parameter.requires_grad for parameter in teacher.policy.parameters())
    other = student(taught, start="random", backbone={"name": "mlp", "width": 8, "depth": 1})
    assert teacher_for(other) is not None  # another network
    assert torch.equal(other.normalizer.maps[0].scale, policy.normalizer.maps[0].scale)

    objective = {"name": "distillation", "teacher": str(taught)}
    run = make_trainer(
        tmp_path / "student", objective, teacher=teacher.policy, info={"teacher": teacher.notes}
    )
    run.fit()
    shutil.rmtree(taught)
    loaded = Policy.load(tmp_path / "student")
    assert loaded.config["objective"]["teacher"] is None
    assert loaded.info["teacher"]["sha256"] == teacher.notes["sha256"]
    assert loaded.act({"state": torch.zeros(1, 2, 3)}).shape == (1, 2, 2)
    assert Objective({"name": "isd"}).options["targets"] == "own"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"place": None}, r"add objective\.teacher=RUN"),
        ({"place": "nowhere"}, r"objective\.teacher=nowhere: checkpoint nowhere does not exist"),
        ({"spec": replace(SPEC, action_dim=3)}, "action: .* has 2 dimensions, the data has 3"),
        ({"spec": replace(SPEC, horizon=8)}, "has horizon=4, the student 8"),
        ({"spec": replace(SPEC, observations={"joints": ObsKey((3,))})}, "needs observation 'state'"),
        ({"normalizer": {"action": "gaussian"}}, "another normalizer .*action=minmax instead of gaussian"),
        (
            {"backbone": {"name": "mlp", "width": 8, "depth": 1}},
            r"width=16 instead of 8.*objective\.start=random",
        ),
        ({"prefix": 2}, "another prefix than the student: 0 instead of 2"),
    ],
)
def test_a_teacher_that_does_not_fit_is_one_clear_line(
    taught: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(FlowleapError, match=words) as error:
        teacher_for(student(**{"place": taught, **change}))
    assert "\n" not in str(error.value)


def test_a_teacher_without_a_velocity_and_another_one_than_before_are_refused(
    taught: Path, tmp_path: Path
) -> None:
    make_trainer(tmp_path / "mean", {"name": "regression"}).fit()
    with pytest.raises(FlowleapError, match="objective=regression, which learns no velocity field"):
        teacher_for(student(tmp_path / "mean"))
    noted = {"path": "runs/first", "sha256": "0" * 64, "step": 5}
    with pytest.raises(
        FlowleapError, match="not the teacher that the run began with, which was runs/first at step 5"
    ):
        teacher_for(student(taught), noted)
    with pytest.raises(FlowleapError, match=r"add \+objective\.teacher=PLACE"):
        teacher_for(student("nowhere"), noted)
    assert teacher_for(Policy(SPEC, CONFIG)) is None  # flow matching learns from nobody


def test_a_warm_start_leaps_from_between_the_chunk_before_and_noise() -> None:
    def policy(objective: str, sigma: float) -> Policy:
        torch.manual_seed(0)
        made = Policy(SPEC, {**CONFIG, "objective": objective, "head_sigma": sigma})
        made.normalizer.maps[-1].scale.fill_(0.5)  # actions of [-2, 2]
        return made.eval()

    obs, z, w = {"state": torch.randn(5, 2, 3)}, torch.randn(5, 4, 2), 0.3
    before = torch.randn(5, 4, 2)
    start = torch.full((5,), 1 - w)
    for sigma in (0.0, 0.1):
        plain = policy("isd", sigma)
        got = plain.chunk(obs, z, 1, previous=before, warm_start=w)
        x = (1 - w) * z + w * before / 2
        with torch.no_grad():
            assert torch.allclose(got, 2 * plain.flow_map(obs).clean(x, start), atol=1e-6)
        many = plain.chunk(obs, z[:, None].repeat(1, 3, 1, 1), 1, previous=before, warm_start=w)
        assert torch.allclose(many, got[:, None].expand_as(many), atol=1e-6)
        assert torch.equal(plain.chunk(obs, z, 2), plain.chunk(obs, z, 2, previous=before))  # w = 0: cold
    euler = policy("flow_matching", 0.0)
    got = euler.chunk(obs, z, 2, previous=before, warm_start=w)
    with torch.no_grad():
        u, x = euler.flow_map(obs), (1 - w) * z + w * before / 2
        x = x - start[0] / 2 * u.velocity(x, start)
        assert torch.allclose(got, 2 * (x - start[0] / 2 * u.velocity(x, start / 2)), atol=1e-6)
    with pytest.raises(FlowleapError, match="'regression' starts from pure noise only"):
        policy("regression", 0.0).chunk(obs, z, 1, previous=before, warm_start=w)
