"""Stores that version 0.1 wrote, one recording in three formats: they keep opening, and hold the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flowleap.datasets.dataset import Dataset, open_dataset

GOLDEN = Path(__file__).parent.parent / "data" / "v0.1"
STORES = ("store.zarr", "store.hdf5", "store_lerobot")


@pytest.mark.parametrize("name", STORES[1:])
def test_the_three_formats_hold_the_same(name: str) -> None:
    pytest.importorskip("pyarrow" if "lerobot" in name else "h5py", reason="needs flowleap[formats]")
    with open_dataset(GOLDEN / "store.zarr") as store, open_dataset(GOLDEN / name) as other:
        assert other.spec == store.spec
        assert (other.keys, other.n_episodes) == (store.keys, store.n_episodes)
        seeds = [store.seed(i) for i in range(store.n_episodes)]
        assert [other.seed(i) for i in range(other.n_episodes)] == seeds
        np.testing.assert_array_equal(other.episode_ends, store.episode_ends)
        expected, got = store.columns(), other.columns()
        assert list(got) == [*store.spec.observations, "action"]
        for key, values in expected.items():
            assert got[key].dtype == values.dtype
            np.testing.assert_array_equal(got[key], values)
        batches = [dataset.windows(2, 4, 2).gather(np.arange(store.n_frames)) for dataset in (store, other)]
        np.testing.assert_array_equal(batches[0]["action"], batches[1]["action"])


def test_arrays_are_a_dataset_like_the_store_they_came_from() -> None:
    with open_dataset(GOLDEN / "store.zarr") as store:
        arrays = Dataset.from_arrays(store.columns(), store.episode_ends)
        assert not arrays.has_spec
        assert arrays.spec.observations == store.spec.observations
        for index in range(store.n_episodes):
            for key, values in store.episode(index).items():
                np.testing.assert_array_equal(arrays.episode(index)[key], values)
        ours, theirs = (data.windows(2, 4, 2, image_frames=1) for data in (arrays, store))
        assert ours.spec.observations == theirs.spec.observations
        assert set(ours.columns) == {*store.spec.observations, "action"}
        index = np.array([0, 5, store.n_frames - 1])
        for key, values in theirs.gather(index)["obs"].items():
            np.testing.assert_array_equal(ours.gather(index)["obs"][key], values)
