"""The control loop: history, chunks in the background, limits, what happens when something is late or wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

from flowleap.envs.rollout import rollout
from flowleap.envs.task import Task
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.limits import ActionLimits
from flowleap.policy.core.spec import ObsKey, Spec
from flowleap.policy.deploy.controller import Controller, LateChunk
from flowleap.policy.deploy.plan import Continuity

H, EXECUTE = 12, 4
SPEC = Spec(
    {"x": ObsKey((2,))}, 2, n_obs_steps=2, horizon=H, n_action_steps=EXECUTE, control_hz=50.0,
    limits=ActionLimits((-9.0, -9.0), (9.0, 9.0), (9.0, 9.0)),
)  # fmt: skip


class Chunks:
    """A policy whose chunks depend on history, noise and prefix; one may be held up, or break."""

    def __init__(self, spec: Spec = SPEC, seconds: float = 0.0) -> None:
        self.spec, self.actions, self.prefix, self.seconds = spec, H, 6, seconds
        self.free = threading.Event()
        self.free.set()
        self.calls: list[dict[str, Any]] = []
        self.answer: Any = None

    def example(self) -> dict[str, np.ndarray]:
        return {"x": np.zeros((1, 2, 2), np.float32)}

    def chunk(self, obs: Any, noise: Any = None, prefix: Any = None) -> np.ndarray:
        self.calls.append({"obs": obs["x"][0], "prefix": prefix})
        time.sleep(self.seconds)
        assert self.free.wait(10)
        if self.answer is not None:
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer
        many = noise.ndim == 4
        z = noise if many else noise[:, None]
        chunk = 0.1 * z + obs["x"].mean(1)[:, None, None] + 0.01 * np.arange(H)[:, None]
        if prefix is not None:
            chunk[:, :, : prefix.shape[1]] = prefix[:, None]
        return (chunk if many else chunk[:, 0]).astype(np.float32)


@pytest.fixture
def chunks() -> Iterator[Chunks]:
    policy = Chunks()
    yield policy
    policy.free.set()


def frame(step: int) -> dict[str, np.ndarray]:
    return {"x": np.array([np.sin(step), 0.1 * step], np.float32), "unused": np.zeros(3)}


class Sine(gymnasium.Env):
    """Shows what `frame` shows, whatever is done; records the actions."""

    sent: list[np.ndarray] = []  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.observation_space = Dict({"x": Box(-np.inf, np.inf, (2,), np.float32)})
        self.action_space = Box(-np.inf, np.inf, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.t = 0
        Sine.sent = []
        return {"x": frame(0)["x"]}, {}

    def step(self, action: np.ndarray) -> Any:
        self.t += 1
        Sine.sent.append(action)
        return {"x": frame(self.t)["x"]}, 0.0, False, False, {"success": False}


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {"delay": 0},
        {"delay": 3},
        {"delay": 4, "continuity": "prefix"},
        {"delay": 2, "continuity": "best_of", "best_of": 5},
        {"delay": 3, "continuity": "prefix", "best_of": 4},
        {"delay": 1, "continuity": "ensemble"},
    ],
)
def test_what_is_measured_is_what_runs(chunks: Chunks, settings: dict[str, Any], background: bool) -> None:
    continuity = Continuity(execute=EXECUTE, **settings)
    task = Task("test/sine", Sine, Spec({"x": ObsKey((2,))}, 2), 40, "")
    spec = SPEC.with_window(2, H, EXECUTE)
    rollout(
        task,
        chunks.chunk,
        spec,
        [7],
        continuity=continuity if settings["delay"] else Continuity(execute=EXECUTE),
    )
    with Controller(chunks, execute=EXECUTE, background=background, limits=None, **settings) as controller:
        controller._rng = np.random.default_rng([7, 0xF10])  # of the episode
        sent = []
        for step in range(40):
            sent.append(controller.step(frame(step)))
            deadline = time.monotonic() + 5
            while (
                controller._pending is not None
                and not controller._pending.done()
                and time.monotonic() < deadline
            ):
                time.sleep(1e-4)
    np.testing.assert_allclose(np.stack(sent), np.stack(Sine.sent), rtol=1e-6)
    assert controller.counters.summary()["chunks"] == 10
    assert controller.counters.summary()["late"] == 0


def test_history_begins_with_the_first_frame_repeated(chunks: Chunks) -> None:
    with Controller(chunks, delay=0, limits=None) as controller:
        for episode in range(2):
            controller.reset()
            for step in range(5):
                controller.step(frame(step + episode))
    seen = [call["obs"] for call in chunks.calls]
    np.testing.assert_array_equal(seen[0], np.stack([frame(0)["x"]] * 2))
    np.testing.assert_array_equal(seen[1], np.stack([frame(3)["x"], frame(4)["x"]]))
    np.testing.assert_array_equal(seen[2], np.stack([frame(1)["x"]] * 2))


def run_late(chunks: Chunks, late: Any, steps: int) -> tuple[Controller, list[np.ndarray]]:
    controller = Controller(chunks, delay=2, late=late, limits=None, seed=0)
    sent = [controller.step(frame(step)) for step in range(EXECUTE)]
    chunks.free.clear()
    sent += [controller.step(frame(EXECUTE + step)) for step in range(steps)]
    return controller, sent


def test_a_late_chunk_lets_the_plan_go_on_and_then_holds_still(chunks: Chunks) -> None:
    controller, sent = run_late(chunks, "continue", 12)
    with closing(controller):
        assert controller.counters.late == 10
        assert controller.counters.held == EXECUTE + 12 - H
        assert len(np.unique(np.stack(sent[:H]), axis=0)) == H
        for action in sent[H:]:
            np.testing.assert_array_equal(action, sent[H - 1])
        chunks.free.set()
        while not controller._pending.done():  # type: ignore[union-attr]
            time.sleep(1e-3)
        late = controller.counters.late
        controller.step(frame(30))
        assert controller.counters.late == late


def test_a_late_chunk_holds_still_where_that_is_asked_for(chunks: Chunks) -> None:
    controller, sent = run_late(chunks, "hold", 5)
    with closing(controller):
        assert controller.counters.held == 3
        assert not np.array_equal(sent[4], sent[5])  # in time
        for action in sent[6:]:
            np.testing.assert_array_equal(action, sent[5])


def test_a_late_chunk_stops_where_that_is_asked_for(chunks: Chunks) -> None:
    controller, _ = run_late(chunks, "stop", 2)
    with closing(controller), pytest.raises(LateChunk, match="not there after 2 steps, delay=2"):
        controller.step(frame(6))


@pytest.mark.parametrize(
    ("obs", "words"),
    [
        ({}, "observation 'x' is missing; got \\[\\]"),
        ({"x": np.zeros(3)}, r"observation 'x': expected one frame \[2\], got \[3\]"),
        ({"x": np.array([0.0, np.nan])}, r"observation 'x' is nan at index \[1\]: check the sensor"),
        ({"x": np.array([np.inf, 0.0])}, r"observation 'x' is inf at index \[0\]"),
        ({"x": np.array(["a", "b"])}, "observation 'x': .*numbers"),
    ],
)
def test_a_bad_observation_is_an_error_and_the_robot_can_hold_still(
    chunks: Chunks, obs: dict[str, Any], words: str
) -> None:
    with Controller(chunks, delay=0, limits=None) as controller:
        with pytest.raises(FlowleapError, match="no action to hold yet"):
            controller.hold()
        last = controller.step(frame(0))
        with pytest.raises(FlowleapError, match=words):
            controller.step(obs)
        np.testing.assert_array_equal(controller.hold(), last)
        controller.step(frame(1))  # as if nothing had been
        assert len(controller._frames) == 2


def test_a_policy_that_breaks_is_an_error_of_the_next_step(chunks: Chunks) -> None:
    with Controller(chunks, delay=1, limits=None) as controller:
        for step in range(EXECUTE):
            controller.step(frame(step))
        chunks.answer = np.full((1, H, 2), np.nan, np.float32)
        controller.step(frame(4))
        controller._pending.exception()  # type: ignore[union-attr]
        with pytest.raises(FlowleapError, match="NaN or infinite actions"):
            controller.step(frame(5))
        chunks.answer = None
        for step in range(6, 12):
            assert np.isfinite(controller.step(frame(step))).all()


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("delay", [0, 1])
def test_after_an_error_of_the_policy_the_next_good_frame_goes_on(
    chunks: Chunks, delay: int, first: bool
) -> None:
    with Controller(chunks, delay=delay, limits=None) as controller:
        for step in range(0 if first else EXECUTE):
            controller.step(frame(step))
        chunks.answer = FlowleapError("far outside")
        with suppress(FlowleapError):  # with a delay, the next step hears of it
            controller.step(frame(4))
            controller._pending.exception()  # type: ignore[union-attr]
            controller.step(frame(5))
        assert controller._plan.asked is None
        chunks.answer, asked = None, len(chunks.calls)
        for step in range(3):
            assert np.isfinite(controller.step(frame(step))).all()
            if controller._pending is not None:
                controller._pending.exception()  # until it is there
        assert len(chunks.calls) == asked + 1
        assert controller.counters.held == 0


def test_the_delay_is_measured_with_as_many_noises_as_there_will_be(chunks: Chunks) -> None:
    shapes = []
    chunk = chunks.chunk

    def seen(obs: Any, noise: Any = None, prefix: Any = None) -> np.ndarray:
        shapes.append(noise.shape)
        return chunk(obs, noise, prefix)

    chunks.chunk = seen  # type: ignore[method-assign]
    with Controller(chunks, continuity="best_of", control_hz=1):
        assert set(shapes) == {(1, 16, H, 2)}


def test_actions_stay_within_bounds_and_rates(chunks: Chunks) -> None:
    chunks.answer = np.stack([np.arange(H), -5 * np.arange(H)], 1)[None].astype(np.float32)
    limits = ActionLimits((-2.0, -20.0), (2.0, 20.0), (10.0, 3.0))
    with Controller(chunks, delay=0, limits=limits, execute=H) as controller:
        sent = np.stack([controller.step(frame(step)) for step in range(H)])
    np.testing.assert_array_equal(sent[:, 0], np.minimum(np.arange(H), 2))
    np.testing.assert_allclose(sent[:, 1], np.maximum(-3.0 * np.arange(H), -20))
    assert controller.counters.limited == H - 1
    with Controller(chunks, delay=0) as controller:
        assert controller.limits == SPEC.limits.widened()  # type: ignore[union-attr]


def test_holding_still_is_zero_where_actions_are_changes(chunks: Chunks) -> None:
    from dataclasses import replace

    chunks.spec = replace(SPEC, action_convention="delta")
    with Controller(chunks, delay=0) as controller:
        np.testing.assert_array_equal(controller.hold(), np.zeros(2))


def test_the_delay_is_measured() -> None:
    with Controller(Chunks(seconds=0.03)) as controller:  # 1.5 steps of 20 ms
        assert 2 <= controller.settings.delay <= 6
    with Controller(Chunks(), control_hz=1) as controller:
        assert controller.settings.delay == 0
    with pytest.raises(FlowleapError, match="how long a step is"):
        Controller(Chunks(Spec({"x": ObsKey((2,))}, 2, n_obs_steps=2, horizon=H, n_action_steps=EXECUTE)))


def test_limits_are_read_off_demonstrations_and_checked() -> None:
    actions = np.array([[0.0], [1.0], [3.0], [-4.0], [-5.0]])
    limits = ActionLimits.of(actions, [3, 5])
    assert limits == ActionLimits((-5.0,), (3.0,), (2.0,))
    assert limits.widened(0.1) == ActionLimits((-5.8,), (3.8,), (2.2,))
    spec = Spec({"x": ObsKey((2,))}, 1, limits=limits)
    assert Spec.from_dict(spec.to_dict()) == spec
    assert "limits" not in Spec({"x": ObsKey((2,))}, 1).to_dict()
    for change in (
        {"low": [1.0, 2.0]},
        {"rate": [-1.0]},
        {"high": [float("nan")]},
        {"low": ["a"]},
        {"low": [9.0]},
    ):
        with pytest.raises(FlowleapError, match="limits"):
            Spec.from_dict({**spec.to_dict(), "limits": {**spec.to_dict()["limits"], **change}})
