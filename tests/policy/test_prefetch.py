"""Batches gathered ahead: the same ones in the same order, a place to resume from, errors that arrive."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flowleap.datasets.windows import ShuffledIndices
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.training.batches import Prefetcher


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
