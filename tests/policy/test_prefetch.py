"""Shuffled indices, and batches gathered ahead: the same order, a place to resume from, errors that arrive."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.training.batches import ShuffledIndices
from flowleap.policy.training.prefetch import Prefetcher


class Doubles:
    """Windows whose content is twice their index."""

    def __len__(self) -> int:
        return 50

    def gather(self, index: np.ndarray) -> dict[str, Any]:
        if 49 in index:
            raise FlowleapError("window 49 is damaged")
        return {"obs": {}, "action": 2 * index}


def stream(workers: int, n: int = 40) -> Prefetcher:
    return Prefetcher(Doubles(), ShuffledIndices(n, 8, seed=3), slice(2, 6), workers)


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_change_nothing(workers: int) -> None:
    plain, ahead = stream(0), stream(workers)
    for _ in range(12):
        (indices, arrays), (other, others) = plain.next(), ahead.next()
        np.testing.assert_array_equal(indices, other)
        np.testing.assert_array_equal(arrays["action"], others["action"])
        np.testing.assert_array_equal(arrays["action"], 2 * indices[2:6])
        assert plain.state_dict() == ahead.state_dict()


def test_a_resumed_stream_goes_on_with_the_batch_after_the_last_one() -> None:
    whole, parts = stream(2), stream(2)
    for _ in range(7):
        whole.next(), parts.next()
    resumed = stream(2)
    resumed.next()
    resumed.load_state_dict(parts.state_dict())
    for _ in range(7):
        np.testing.assert_array_equal(whole.next()[0], resumed.next()[0])


def test_errors_of_a_thread_arrive() -> None:
    ahead = stream(2, n=50)

    def exhaust() -> None:
        for _ in range(20):
            ahead.next()

    with pytest.raises(FlowleapError, match="window 49"):
        exhaust()


@given(st.integers(1, 20), st.integers(1, 30), st.integers(0, 2**32))
def test_every_epoch_is_a_permutation(n: int, batch_size: int, seed: int) -> None:
    stream = ShuffledIndices(n, batch_size, seed)
    drawn = np.concatenate([stream.next() for _ in range(3 * n // batch_size + 1)])
    for epoch in range(len(drawn) // n):
        order = np.random.default_rng([seed, epoch]).permutation(n)
        np.testing.assert_array_equal(drawn[epoch * n : (epoch + 1) * n], order)


@given(st.integers(1, 20), st.integers(1, 30), st.integers(0, 12))
def test_the_shuffled_stream_resumes_exactly(n: int, batch_size: int, done: int) -> None:
    whole = ShuffledIndices(n, batch_size, seed=3)
    for _ in range(done):
        whole.next()
    resumed = ShuffledIndices(n, batch_size, seed=3)
    resumed.load_state_dict(whole.state_dict())
    for _ in range(5):
        np.testing.assert_array_equal(whole.next(), resumed.next())


def test_a_place_of_another_dataset_is_refused() -> None:
    with pytest.raises(FlowleapError, match="position 50"):
        ShuffledIndices(10, 4, 0).load_state_dict({"epoch": 0, "position": 50})


def test_an_empty_stream_is_refused() -> None:
    with pytest.raises(FlowleapError, match="batches of 4 from 0"):
        ShuffledIndices(0, 4, 0)
