"""Published splits by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flowleap.datasets.dataset import open_dataset
from flowleap.datasets.selection import chosen_episodes
from flowleap.policy.core.errors import FlowleapError


def test_the_split_of_diffusion_policy_on_its_data(pusht_human: Path) -> None:
    """4 of 206 held out, 90 of the others, 11,356 frames: what its configs train on."""
    with open_dataset(pusht_human, episodes="diffusion_policy") as data:
        assert (data.n_episodes, data.n_frames) == (90, 11_356)
        assert data.chosen[:8] == [7, 9, 10, 11, 13, 16, 20, 25]
        assert not {18, 90, 134, 157} & set(data.chosen)  # for validation
        assert len(data.columns(["state"])["state"]) == 11_356


@pytest.mark.parametrize(("n", "kept"), [(2, 1), (10, 9), (91, 89), (92, 90), (500, 90)])
def test_the_split_of_other_numbers_of_episodes(n: int, kept: int) -> None:
    chosen = chosen_episodes("diffusion_policy", n, "episodes", "data")
    assert len(chosen) == kept
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(range(n))


def test_by_the_masks_of_the_published_code() -> None:
    """The same as two boolean masks, one after the other."""
    n = 206
    train = np.ones(n, bool)
    train[np.random.default_rng(42).choice(n, 4, replace=False)] = False
    kept = np.random.default_rng(42).choice(int(train.sum()), 90, replace=False)
    mask = np.zeros(n, bool)
    mask[np.flatnonzero(train)[kept]] = True
    assert chosen_episodes("diffusion_policy", n, "episodes", "data") == np.flatnonzero(mask).tolist()


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(FlowleapError, match=r"no list of episodes.*did you mean 'diffusion_policy'"):
        chosen_episodes("diffusion-policy", 10, "episodes", "data")
