"""Plans of chunks that arrive late: which action belongs to which step, how a chunk goes over into the next."""

from __future__ import annotations

import numpy as np
import pytest

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.deploy.plan import Continuity, Plan

N, EXECUTE = 10, 4


def chunk(start: int, value: float = 0.0) -> np.ndarray:
    """[1, N, 2]: the step that each action is for, and a mark of the chunk."""
    return np.stack([np.arange(start, start + N), np.full(N, value)], 1)[None].astype(np.float32)


def run(settings: Continuity, steps: int = 16) -> np.ndarray:
    """Ask for a chunk every 4 steps, the k-th marked k; [steps, 2]."""
    plan, sent = Plan(settings), []
    for step in range(steps):
        if step % EXECUTE == 0:
            plan.ask()
            plan.receive(chunk(step, step // EXECUTE))
        action = plan.next()
        assert action is not None
        sent.append(action)
    return np.stack(sent)


@pytest.mark.parametrize("delay", range(5))
def test_actions_are_those_of_their_step_and_chunks_begin_after_the_delay(delay: int) -> None:
    sent = run(Continuity(delay=delay))
    np.testing.assert_array_equal(sent[:, 0], np.arange(16))
    chunks = [0 if step < EXECUTE else (step - delay) // EXECUTE for step in range(16)]
    np.testing.assert_array_equal(sent[:, 1], chunks)


@pytest.mark.parametrize("delay", [1, 3])
def test_a_prefix_is_what_is_executed_until_the_chunk_arrives(delay: int) -> None:
    plan = Plan(Continuity(continuity="prefix", delay=delay))
    assert plan.ask().prefix is None  # nothing is running
    plan.receive(chunk(0))
    for _ in range(EXECUTE):
        plan.next()
    prefix = plan.ask().prefix
    assert prefix is not None
    np.testing.assert_array_equal(prefix[:, 0], np.arange(EXECUTE, EXECUTE + delay))
    plan.receive(chunk(EXECUTE, 1.0))
    executed = np.stack([plan.next() for _ in range(delay)])
    np.testing.assert_array_equal(executed, prefix)
    after = plan.next()
    assert after is not None
    np.testing.assert_array_equal(after, [EXECUTE + delay, 1.0])


def test_a_warm_start_is_the_running_chunk_from_now_on() -> None:
    plan = Plan(Continuity(warm_start=0.15))
    assert plan.ask().previous is None  # nothing is running
    plan.receive(chunk(0))
    for _ in range(EXECUTE):
        plan.next()
    previous = plan.ask().previous
    assert previous is not None
    steps = [*range(EXECUTE, N), *[N - 1] * EXECUTE]  # its last action is repeated
    np.testing.assert_array_equal(previous[:, 0], steps)
    cold = Plan(Continuity())
    cold.ask()
    cold.receive(chunk(0))
    assert cold.ask().previous is None


def test_the_nearest_of_several_chunks_is_taken_in_units_of_the_scale() -> None:
    plan = Plan(Continuity(continuity="best_of"), np.array([100.0, 1.0], np.float32))
    assert plan.ask().candidates == 16
    plan.receive(chunk(0))
    for _ in range(EXECUTE):
        plan.next()
    plan.ask()
    far, near = chunk(EXECUTE, 0.9), chunk(EXECUTE + 20)  # 0.9 of the second scale, 0.2 of the first
    plan.receive(np.concatenate([far, near]))
    action = plan.next()
    assert action is not None
    np.testing.assert_array_equal(action, [EXECUTE + 20, 0.0])


def test_an_ensemble_is_the_weighted_mean_of_all_chunks_that_cover_a_step() -> None:
    sent = run(Continuity(continuity="ensemble"))
    w = np.exp(-0.01 * np.arange(3))
    assert sent[3, 1] == 0
    assert sent[5, 1] == pytest.approx(w[1] / w[:2].sum())  # chunks 0 and 1
    assert sent[9, 1] == pytest.approx((w[1] + 2 * w[2]) / w.sum())  # 0 to 2
    assert sent[10, 1] == pytest.approx((1 + 2 * w[1]) / w[:2].sum())  # the first one has ended
    np.testing.assert_allclose(sent[:, 0], np.arange(16), rtol=1e-6)


def test_a_chunk_that_is_later_than_its_delay_is_used_from_its_arrival() -> None:
    plan = Plan(Continuity(delay=2))
    plan.ask()
    plan.receive(chunk(0))
    for _ in range(EXECUTE):
        plan.next()
    plan.ask()
    marks = []
    for step in range(EXECUTE, EXECUTE + 5):
        assert plan.late == (step >= EXECUTE + 2)
        if step == EXECUTE + 4:
            plan.receive(chunk(EXECUTE, 1.0))
        action = plan.next()
        assert action is not None
        assert action[0] == step
        marks.append(action[1])
    assert marks == [0, 0, 0, 0, 1]


def test_a_plan_ends_and_a_new_episode_begins_with_none() -> None:
    plan = Plan(Continuity())
    plan.ask()
    plan.receive(chunk(0))
    assert all(plan.next() is not None for _ in range(N))
    assert plan.next() is None
    plan.reset()
    assert (plan.now, plan.asked, plan.next()) == (0, None, None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Continuity(delay=5), "delay=5 exceeds execute=4"),
        (Continuity(delay=4, continuity="prefix"), "trained with prefix=4 or more, this one has prefix=3"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: Continuity, words: str) -> None:
    with pytest.raises(FlowleapError, match=words):
        settings.check(N, EXECUTE, prefix=3)
    with pytest.raises(FlowleapError, match="chunks of 7 actions end before"):
        Continuity(delay=4).check(7, EXECUTE, prefix=3)
    Continuity(delay=4).check(8, EXECUTE, prefix=0)
