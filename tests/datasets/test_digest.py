"""Digests of training data: the same numbers have the same one, whatever holds them; what differs is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowleap.datasets.dataset import Dataset, open_dataset
from flowleap.datasets.digest import differences, digest
from flowleap.datasets.formats.zarr_writer import EpisodeWriter
from flowleap.datasets.frames import Frames
from flowleap.policy.core.spec import ObsKey, Spec

RNG = np.random.default_rng(0)
ENDS = np.array([20, 60])
COLUMNS = {key: RNG.normal(size=(60, n)).astype(np.float32) for key, n in (("state", 3), ("action", 2))}


def test_it_is_of_the_numbers_not_of_their_type_or_order() -> None:
    stored = json.loads(json.dumps(digest(COLUMNS, ENDS)))
    assert stored.keys() == {"episodes", "frames", "episode_ends", "columns"}
    assert (stored["episodes"], stored["frames"]) == (2, 60)
    doubles = {key: COLUMNS[key].astype(np.float64) for key in ("action", "state")}
    strided = {key: np.asfortranarray(x).astype(">f4") for key, x in COLUMNS.items()}
    for same in (COLUMNS, doubles, strided):
        assert differences(stored, digest(same, ENDS.astype(np.int32))) == []


def changed(key: str, row: int) -> dict[str, Any]:
    other = {k: x.copy() for k, x in COLUMNS.items()}
    other[key][row, 0] += 1e-5
    return other


@pytest.mark.parametrize(
    ("columns", "ends", "expected"),
    [
        (changed("state", 59), ENDS, ["other numbers in 'state'"]),
        (changed("action", 31), ENDS, ["other numbers in 'action'"]),
        (COLUMNS, [21, 60], ["episodes of other lengths"]),
        ({**COLUMNS, "state": COLUMNS["state"].reshape(60, 1, 3)}, ENDS, ["other numbers in 'state'"]),
        (
            {k if k == "action" else "q": x[:50] for k, x in COLUMNS.items()},
            [20, 30, 50],
            [
                "3 episodes instead of 2",
                "50 frames instead of 60",
                "no column 'state'",
                "a new column 'q'",
                "other numbers in 'action'",
            ],
        ),
    ],
)
def test_what_differs_is_named(columns: dict[str, Any], ends: Any, expected: list[str]) -> None:
    assert differences(digest(COLUMNS, ENDS), digest(columns, ends)) == expected


def test_a_run_that_knows_counts_alone_is_compared_by_them() -> None:
    now = digest(COLUMNS, ENDS)
    assert differences({"episodes": 2}, now) == differences({}, now) == []
    assert differences({"episodes": 3}, now) == ["2 episodes instead of 3"]
    assert differences({"episodes": 2, "columns": "nonsense"}, now) == []


def test_images_have_one_digest_in_memory_and_on_disk(tmp_path: Path) -> None:
    spec = Spec({"camera": ObsKey((16, 20, 3), "uint8", "rgb")}, action_dim=2)
    images = RNG.integers(0, 256, (60, 16, 20, 3), dtype=np.uint8)
    with EpisodeWriter(tmp_path / "a.zarr", spec, {}) as writer:
        for rows in (slice(0, 20), slice(20, 60)):
            writer.add({"camera": images[rows], "action": COLUMNS["action"][rows]})

    def stored(cache_bytes: int) -> dict[str, Any]:
        with open_dataset(tmp_path / "a.zarr") as dataset:
            columns = dataset.columns(cache_bytes=cache_bytes)
            assert isinstance(columns["camera"], Frames)
            assert columns["camera"].cached == bool(cache_bytes)
            return digest(columns, dataset.episode_ends)

    arrays = Dataset.from_arrays({"camera": images, "action": COLUMNS["action"]}, ENDS)
    expected = digest(arrays.columns(), arrays.episode_ends)
    assert stored(0) == stored(2**30) == expected
    for row in (0, 59):  # frames that are always looked at
        other = images.copy()
        other[row, 3, 4, 1] ^= 1
        found = digest({"camera": other, "action": COLUMNS["action"]}, ENDS)
        assert differences(expected, found) == ["other numbers in 'camera'"]
