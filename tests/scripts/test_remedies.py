"""Messages that advise to leave out episodes or a column: what they advise works, in every format."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import zarr

from flowleap.datasets.dataset import open_dataset
from flowleap.datasets.quality.checks import Checks
from flowleap.datasets.quality.profile import Profile
from flowleap.policy.core.errors import FlowleapError
from flowleap.scripts.cli import main as cli

E, T = 7, 30
BAD = [2, 4]


def write(path: Path, name: str) -> Path:
    """Seven episodes: NaN in `force` of 2 and in `action` of 4, and episode 6 is a copy of 5."""
    rng = np.random.default_rng(0)
    columns = {"state": rng.normal(size=(E, T, 3)), "force": rng.normal(size=(E, T, 2))}
    columns["action"] = rng.normal(size=(E, T, 2))
    columns["force"][2, 3:5], columns["action"][4, 11, 1] = np.nan, np.inf
    columns = {key: x.astype(np.float32) for key, x in columns.items()}
    for x in columns.values():
        x[6] = x[5]
    if name == "zarr":
        group = zarr.create_group(path / "d.zarr", zarr_format=2)
        for key, x in columns.items():
            group.create_array(f"data/{key}", data=x.reshape(E * T, -1))
        group.create_array("meta/episode_ends", data=np.arange(1, E + 1) * T)
        return path / "d.zarr"
    if name == "flat":
        flat = {key: x.reshape(E * T, -1) for key, x in columns.items()}
        np.savez(path / "d.npz", **flat, episode_ends=np.arange(1, E + 1) * T)
        return path / "d.npz"
    if name == "folder":
        (path / "d").mkdir()
        for e in range(E):
            np.savez(path / f"d/ep_{e}.npz", **{key: x[e] for key, x in columns.items()})
        return path / "d"
    h5py = pytest.importorskip("h5py", reason="needs flowleap[formats]")
    with h5py.File(path / "d.hdf5", "w") as f:
        for e in range(E):
            demo = f.create_group(f"data/demo_{e}")
            demo.attrs["num_samples"] = T
            for key, x in columns.items():
                demo["actions" if key == "action" else f"obs/{key}"] = x[e]
    return path / "d.hdf5"


def lerobot(path: Path) -> Path:
    """The same in a LeRobotDataset, whose writer refuses NaN: they are put into its table."""
    pa = pytest.importorskip("pyarrow", reason="needs flowleap[formats]")
    pq = pytest.importorskip("pyarrow.parquet")
    source = write(path, "zarr")
    group = zarr.open_group(source)
    whole = {key: np.asarray(group[f"data/{key}"]) for key in ("force", "action")}
    for key, values in whole.items():
        group[f"data/{key}"][:] = np.nan_to_num(values, posinf=0.0)
    assert cli.main(["convert", f"source={source}", f"out={path}/d", "to=lerobot", "control_hz=10"]) == 0
    (file,) = (path / "d" / "data").rglob("*.parquet")
    table = pq.read_table(file)
    for key, values in whole.items():
        name = next(n for n in table.column_names if n.endswith(key))
        column = pa.array(values.tolist(), type=table.schema.field(name).type)
        table = table.set_column(table.column_names.index(name), table.schema.field(name), column)
    pq.write_table(table, file)
    return path / "d"


def options(message: str) -> list[str]:
    """The options that a message advises, as a shell passes them on."""
    return [shlex.split(word)[0] for word in re.findall(r"drop=\S*[\]\"]|'keys=[^']*'", message)]


@pytest.mark.parametrize("name", ["zarr", "flat", "folder", "hdf5", "lerobot"])
def test_what_is_advised_about_nan_works(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lerobot(tmp_path) if name == "lerobot" else write(tmp_path, name)
    with open_dataset(path) as source, pytest.raises(FlowleapError) as error:
        source.columns()
    capsys.readouterr()
    assert options(str(error.value)) == ["drop=[2,4]"]
    assert "at frame 3 (2 episodes have such numbers)" in str(error.value)
    assert cli.main(["convert", f"source={path}", f"out={tmp_path}/o.zarr"]) == 1
    assert options(capsys.readouterr().err) == ["drop=[2,4]"]
    assert cli.main(["inspect", f"dataset={path}"]) == 0
    assert options(capsys.readouterr().out) == ["drop=[2,4]", "drop=[6]"]
    # What was dropped before is in what is advised then.
    with open_dataset(path, drop=[4]) as source, pytest.raises(FlowleapError) as error:
        source.columns()
    assert options(str(error.value)) == ["drop=[2,4]", "keys=[-force]"]
    with open_dataset(path, keys=["-force"], drop=[4]) as source:
        assert list(source.columns()) == ["state", "action"]
    with open_dataset(path, drop=[2, 4]) as source:
        assert [f for f in Checks(source).findings if "NaN" in f.problem] == []
        assert source.windows().n_frames == 5 * T
    assert cli.main(["inspect", f"dataset={path}", "drop=[2,4]"]) == 0
    assert options(capsys.readouterr().out) == ["drop=[2,4,6]"]
    assert cli.main(["convert", f"source={path}", f"out={tmp_path}/o.zarr", "drop=[2,4,6]"]) == 0
    with open_dataset(tmp_path / "o.zarr") as source:
        assert source.n_episodes == 4
        assert Checks(source).findings == []


def test_training_goes_as_advised(tmp_path: Path) -> None:
    path = write(tmp_path, "zarr")
    small = ["trainer.steps=1", "trainer.device=cpu", "trainer.progress=false", "trainer.batch_size=4"]
    assert cli.main(["train", f"dataset={path}", f"run_dir={tmp_path}/run", *small]) == 1
    assert cli.main(["train", f"dataset={path}", f"run_dir={tmp_path}/run", *small, "drop=[2,4]"]) == 0


@pytest.mark.parametrize("cache", [2**30, 0])
def test_what_is_advised_about_cameras_works(
    tmp_path: Path, cache: int, capsys: pytest.CaptureFixture[str]
) -> None:
    group = zarr.create_group(tmp_path / "c.zarr", zarr_format=2)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (E * T, 16, 20, 3)).astype(np.float32)
    still = rng.integers(0, 256, (E * T, 16, 20, 3)).astype(np.uint8)
    images[[T + 2, 3 * T]] = np.nan
    still[4 * T : 5 * T] = still[4 * T]
    columns = {"cam": images, "wrist": still, "state": rng.normal(size=(E * T, 3)).astype(np.float32)}
    columns["action"] = rng.normal(size=(E * T, 2)).astype(np.float32)
    for key, x in columns.items():
        group.create_array(f"data/{key}", data=x, chunks=(10, *x.shape[1:]))
    group.create_array("meta/episode_ends", data=np.arange(1, E + 1) * T)
    path = tmp_path / "c.zarr"
    with open_dataset(path) as source, pytest.raises(FlowleapError) as error:
        source.columns()
    assert options(str(error.value)) == ["drop=[1,3]", "keys=[-cam]"]
    with open_dataset(path, drop=[3]) as source, pytest.raises(FlowleapError) as error:
        source.columns()
    assert options(str(error.value)) == ["drop=[1,3]", "keys=[-cam]"]
    assert cli.main(["convert", f"source={path}", f"out={tmp_path}/o.zarr"]) == 1
    assert options(capsys.readouterr().err) == ["drop=[1,3]", "keys=[-cam]"]
    assert cli.main(["inspect", f"dataset={path}"]) == 0
    advised = options(capsys.readouterr().out)
    assert advised == ["drop=[4]", "keys=[-wrist]", "drop=[1,3]", "keys=[-cam]"]
    with open_dataset(path, drop=[1, 3]) as source:
        kept = source.columns()["cam"]
        assert kept.cached
        others = np.isin(np.arange(E * T) // T, [1, 3], invert=True)
        np.testing.assert_array_equal(kept.take(np.arange(len(kept))), images[others])
    with open_dataset(path, keys=["-cam"], episodes=[6, 0]) as source:
        frames = source.columns(cache_bytes=cache)["wrist"]
        rows = np.concatenate([np.arange(6 * T, 7 * T), np.arange(T)])
        assert frames.cached == (cache > 0)
        np.testing.assert_array_equal(frames.take(np.arange(2 * T)), still[rows])
    with open_dataset(path, drop=[1, 3, 4]) as source:
        assert Profile(source, Checks(source), (1, 1, 1)).findings == []


@pytest.mark.parametrize("chosen", [[], ["keys=[top,state]"], ["keys=[state,top]", "drop=[0]"]])
def test_what_is_advised_about_a_renamed_camera_works(
    tmp_path: Path, chosen: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    images = rng.random((E * T, 16, 20, 3)).astype(np.float32)
    images[[T + 2, 3 * T]] = np.nan
    group = zarr.create_group(tmp_path / "c.zarr", zarr_format=2)
    columns = {"cam": images, "state": rng.normal(size=(E * T, 3)).astype(np.float32)}
    columns["action"] = rng.normal(size=(E * T, 2)).astype(np.float32)
    for key, x in columns.items():
        group.create_array(f"data/{key}", data=x, chunks=(10, *x.shape[1:]))
    group.create_array("meta/episode_ends", data=np.arange(1, E + 1) * T)
    dropped = "drop=[0,1,3]" if "drop=[0]" in chosen else "drop=[1,3]"
    without = "keys=[state]" if chosen else "keys=[-top]"
    words = [f"dataset={tmp_path}/c.zarr", "rename={top:cam}"]
    small = [f"run_dir={tmp_path}/run", "trainer.steps=1", "trainer.device=cpu", "trainer.progress=false"]
    assert cli.main(["train", *words, *chosen, *small]) == 1
    assert options(capsys.readouterr().err) == [dropped, without]
    words[0] = f"source={tmp_path}/c.zarr"
    assert cli.main(["convert", *words, *chosen, f"out={tmp_path}/o.zarr"]) == 1
    assert options(capsys.readouterr().err) == [dropped, without]
    assert cli.main(["convert", *words, *chosen, f"out={tmp_path}/a.zarr", without]) == 0
    with open_dataset(tmp_path / "a.zarr") as source:
        assert list(source.spec.observations) == ["state"]
    rest = [word for word in chosen if not word.startswith("drop")]
    assert cli.main(["convert", *words, *rest, f"out={tmp_path}/b.zarr", dropped]) == 0
    with open_dataset(tmp_path / "b.zarr") as source:
        assert source.n_episodes == (4 if "0" in dropped else 5)
        assert source.spec.observations["top"].image


def test_a_column_whose_name_is_a_number_is_left_out_as_advised(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    columns = {"0": rng.normal(size=(E * T, 3)), "1": rng.normal(size=(E * T, 2))}
    columns |= {"action": rng.normal(size=(E * T, 2)), "episode_ends": np.arange(1, E + 1) * T}
    columns["0"][T] = np.nan
    np.savez(tmp_path / "d.npz", **columns)
    with open_dataset(tmp_path / "d.npz") as source, pytest.raises(FlowleapError) as error:
        source.columns()
    advised = options(str(error.value))
    assert advised == ["drop=[1]", 'keys=["-0"]']
    assert cli.main(["convert", f"source={tmp_path}/d.npz", f"out={tmp_path}/o.zarr", advised[1]]) == 0
    with open_dataset(tmp_path / "o.zarr") as source:
        assert list(source.spec.observations) == ["1"]
