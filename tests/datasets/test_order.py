"""Rows of an episode that are out of order, doubled or lost: refused by what trains, named by `inspect`."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from layouts import LAYOUTS

from flowleap.datasets import order
from flowleap.datasets.dataset import open_dataset
from flowleap.datasets.quality.checks import Checks
from flowleap.envs.task_data import load_columns
from flowleap.policy.core.errors import FlowleapError
from flowleap.scripts.cli import main as cli

pytest.importorskip("h5py", reason="needs flowleap[formats]")
pytest.importorskip("pyarrow", reason="needs flowleap[formats]")
TIMES = {
    "fine": np.arange(6) / 10,
    "back": np.array([0, 0.1, 0.3, 0.2, 0.4, 0.5]),
    "twice": np.array([0, 0.1, 0.2, 0.2, 0.3, 0.4]),
}
COUNTS = {name: np.round(10 * times).astype(np.int64) for name, times in TIMES.items()}


def episodes(key: str, values: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Three episodes, of which the second one has the values."""
    fine = (TIMES if values.dtype.kind == "f" else COUNTS)["fine"]
    state = np.random.default_rng(0).normal(size=(3, 6, 2))
    return [
        {"state": state[i], "action": state[i], key: values if i == 1 else fine + (100 if i == 2 else 0)}
        for i in range(3)
    ]


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("key", ["timestamp", "step", "frame_index"])
def test_every_format_refuses_and_inspects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, key: str
) -> None:
    if kind == "lerobot" and key != "step":
        pytest.skip("has columns of its own: test_lerobot_frames")
    values = TIMES if key == "timestamp" else COUNTS
    for name, says in (("back", "goes back from .* at frame 3"), ("twice", "is .* at frames 2 and 3")):
        path = LAYOUTS[kind](tmp_path / name, episodes(key, values[name]))
        with open_dataset(path) as source:
            assert key in source.unused
            with pytest.raises(FlowleapError, match=f"'{key}' {says}.*drop=") as caught:
                load_columns(None, source)
            assert source.label(1) in str(caught.value)
        with open_dataset(path, drop=[1]) as source:
            assert load_columns(None, source).episode_ends.tolist() == [6, 12]
        assert cli.main(["inspect", f"dataset={path}"]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert re.search(f"rows out of order or doubled in 1 episodes: .*'{key}' {says}", out)
        assert "drop=[1]" in out
        with open_dataset(path, lenient=True, drop=[0]) as source:  # where it is the first one
            remedies = [f.remedy for f in Checks(source).findings if "rows out of order" in f.problem]
            assert [re.findall(r"drop=\S+", remedy) for remedy in remedies] == [["drop=[0,1]"]]
    fine = LAYOUTS[kind](tmp_path / "fine", episodes(key, values["fine"]))
    with open_dataset(fine) as source:
        assert load_columns(None, source).n_frames == 18


def test_clocks_that_tick_slowly_tell_no_rows_apart() -> None:
    assert order.problem(np.array([7, 7, 7, 8, 8, 8, 9])) is None
    assert order.problem(np.full((5, 1), 1.76e9, np.float32)) is None
    assert order.problem(np.array([7, 7, 7, 8, 8, 8, 7])) is not None
    near = np.array([2**62, 2**62 + 1, 2**62 + 2])  # nanoseconds, which float64 cannot tell apart
    assert order.problem(near) is None
    assert order.problem(near[[0, 1, 1, 2]]) is not None
    assert order.problem(np.array([3, 2, 4], np.uint8)) is not None


def test_minari_states_its_steps(tmp_path: Path) -> None:
    import h5py

    path = LAYOUTS["minari"](tmp_path / "x", episodes("count", COUNTS["fine"]))
    with h5py.File(path / "data/main_data.hdf5", "a") as file:
        file["episode_2"].attrs["total_steps"] = 5
    with (
        open_dataset(path) as source,
        pytest.raises(FlowleapError, match="episode 2: 'action' has 6 frames, but total_steps says 5"),
    ):
        source.episode(2)
    (path / "data/metadata.json").write_text('{"total_episodes": 3, "total_steps": 17}')
    with pytest.raises(FlowleapError, match=r"has 18 frames, total_steps in metadata\.json says 17"):
        open_dataset(path)
