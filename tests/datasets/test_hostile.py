"""Datasets that claim what is not there, point elsewhere, or carry code: one error each, and nothing else happens."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from flowleap.datasets import dataset as formats
from flowleap.policy.core.errors import FlowleapError

MANY = 10**12


def read_all(path: Path) -> None:
    """Open a dataset and read every episode."""
    with formats.open_dataset(path) as source:
        for i in range(source.n_episodes):
            source.episode(i)


# HDF5


def robomimic(path: Path) -> Path:
    h5py = pytest.importorskip("h5py", reason="needs flowleap[formats]")
    with h5py.File(path, "w") as f:
        for i in range(2):
            group = f.create_group(f"data/demo_{i}")
            group["obs/state"], group["actions"] = np.ones((3, 3)), np.ones((3, 2))
            group.attrs["num_samples"] = 3
    return path


def linked(h5py: Any, group: Any, other: Path) -> None:
    group["obs/state"] = h5py.ExternalLink(str(robomimic(other)), "data/demo_0/obs/state")


def raw(h5py: Any, group: Any, other: Path) -> None:
    other.write_bytes(bytes(72))
    group.create_dataset("obs/state", (3, 3), "f8", external=[(str(other), 0, 72)])


def virtual(h5py: Any, group: Any, other: Path) -> None:
    layout = h5py.VirtualLayout((3, 3), "f8")
    layout[:] = h5py.VirtualSource(str(robomimic(other)), "data/demo_0/obs/state", (3, 3))
    group.create_virtual_dataset("obs/state", layout)


@pytest.mark.parametrize("place", [linked, raw, virtual])
def test_other_files_are_not_read(tmp_path: Path, place: Callable[[Any, Any, Path], None]) -> None:
    path = robomimic(tmp_path / "a.hdf5")
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "a") as f:
        del f["data/demo_1/obs/state"]
        place(h5py, f["data/demo_1"], tmp_path / "other.hdf5")
    with pytest.raises(FlowleapError, match=r"a\.hdf5', demo_1: 'state' is stored in another file"):
        read_all(path)


def more_samples(h5py: Any, f: Any) -> None:
    f["data/demo_1"].attrs["num_samples"] = [3, 3, 3, 3]  # HDF5 writes them all, whatever the buffer


def no_frames(h5py: Any, f: Any) -> None:
    for name, size in (("obs/state", 3), ("actions", 2)):
        del f[f"data/demo_1/{name}"]
        f["data/demo_1"].create_dataset(name, (0, size), "f8")
    del f["data/demo_1"].attrs["num_samples"]


def huge(h5py: Any, f: Any) -> None:
    del f["data/demo_1/obs/state"]
    f["data/demo_1"].create_dataset("obs/state", (MANY, 3), "f8", chunks=(1000, 3))


def other_dtype(h5py: Any, f: Any) -> None:
    del f["data/demo_1/obs/state"]
    f["data/demo_1/obs/state"] = np.ones((3, 3), np.int64)


def no_group(h5py: Any, f: Any) -> None:
    del f["data/demo_1"]
    f["data/demo_1"] = 3


def no_text(h5py: Any, f: Any) -> None:
    h5py.h5g.create(f["data"].id, b"demo_\xff")


def odd_mask(h5py: Any, f: Any) -> None:
    f["mask/train"] = 3


def odd_environment(h5py: Any, f: Any) -> None:
    f["data"].attrs["env_args"] = np.array([1, 2])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (more_samples, r"demo_1: 'state' has 3 frames, but num_samples says int64 \[4\]"),
        (no_frames, "demo_1: 'state' has no frames"),
        (huge, r"demo_1: 'state' takes 24,000\.0 GB, more than the memory that is free"),
        (other_dtype, "demo_1: 'state' has dtype int64, float64 in the episodes before"),
        (no_group, "data/demo_1 is no group"),
        (no_text, "data has a name that is no UTF-8"),
        (odd_mask, "mask/train is no list of demonstrations"),
        (odd_environment, "attribute env_args of data is no JSON"),
    ],
)
def test_odd_hdf5_files_are_named(tmp_path: Path, harm: Callable[[Any, Any], None], message: str) -> None:
    path = robomimic(tmp_path / "a.hdf5")
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "a") as f:
        harm(h5py, f)
    with pytest.raises(FlowleapError, match=rf"a\.hdf5'[:,] {message}"):
        read_all(path)


# zarr


def store(path: Path, zarr_format: int = 2) -> Path:
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)  # type: ignore[arg-type]
    for key, size in (("state", 3), ("action", 2)):
        group.create_array(
            f"data/{key}", data=np.ones((4, size), np.float32), chunks=(2, size), compressors=None
        )
    group.create_array("meta/episode_ends", data=np.array([2, 4]), compressors=None)
    return path


def edit(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize(("zarr_format", "name"), [(2, ".zarray"), (3, "zarr.json")])
def test_claimed_rows_of_a_store_are_not_counted(tmp_path: Path, zarr_format: int, name: str) -> None:
    ends = store(tmp_path / "a.zarr", zarr_format)
    edit(ends / "meta/episode_ends" / name, shape=[MANY])
    with pytest.raises(FlowleapError, match=r"meta/episode_ends, .* takes 8,000\.0 GB"):
        read_all(ends)
    both = store(tmp_path / "b.zarr", zarr_format)
    zarr.open_array(both / "meta/episode_ends", mode="r+")[:] = np.array([2, MANY])
    for key, size in (("state", 3), ("action", 2)):
        edit(both / "data" / key / name, shape=[MANY, size])
    with pytest.raises(FlowleapError, match=r"data/state, frames 2 to 999999999999, takes 12,000\.0 GB"):
        read_all(both)


def test_a_chunk_that_unpacks_to_too_much_is_not_unpacked(tmp_path: Path) -> None:
    folder = store(tmp_path / "a.zarr")
    with zipfile.ZipFile(tmp_path / "a.zarr.zip", "w", zipfile.ZIP_DEFLATED) as out:
        for file in folder.rglob("*"):
            if file.is_file():
                chunk = file.name == "0.0" and file.parent.name == "state"
                out.writestr(str(file.relative_to(folder)), bytes(4 * 2**20) if chunk else file.read_bytes())
    with pytest.raises(
        FlowleapError, match=r"chunk data/state/0\.0 has 4194304 bytes, too many for 6 values"
    ):
        read_all(tmp_path / "a.zarr.zip")


def test_damaged_metadata_of_a_store_are_named(tmp_path: Path) -> None:
    path = store(tmp_path / "a.zarr")
    (path / "meta/episode_ends/.zarray").write_text("{")
    with pytest.raises(FlowleapError, match=r"a\.zarr': meta/episode_ends is damaged"):
        read_all(path)
    path = store(tmp_path / "b.zarr")
    edit(path / "data/state/.zarray", shape=[4, -3])
    with pytest.raises(
        FlowleapError, match=r"b\.zarr' has no column beside 'action' .* 'state' cannot be read"
    ):
        read_all(path)


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("field", [{"filters": [{"id": "pickle"}]}, {"compressor": {"id": "pickle"}}])
@pytest.mark.parametrize("array", ["data/state", "meta/episode_ends"])
def test_the_pickle_codec_of_zarr_is_never_run(tmp_path: Path, array: str, field: dict[str, Any]) -> None:
    path = store(tmp_path / "a.zarr")
    edit(path / array / ".zarray", **field)
    for chunk in (path / array).glob("[0-9]*"):
        chunk.write_bytes(pickle.dumps(Touch(tmp_path / "touched")))
    with pytest.raises(FlowleapError, match=r"a\.zarr'"):
        read_all(path)
    assert not (tmp_path / "touched").exists()


# npz


def header(shape: tuple[int, ...]) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (117 - len(text)) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize("shape", [(MANY, 3), (4, -3), (-4, 3), (4, 2**40, 2**40)])
def test_claimed_shapes_of_arrays_are_compared_with_their_bytes(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    np.savez(tmp_path / "a.npz", action=np.ones((4, 2), np.float32), episode_ends=np.array([2, 4]))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as out:
        out.writestr("state.npy", header(shape))
    with pytest.raises(FlowleapError, match=r"a\.npz' is no whole .*state\.npy has 128 bytes, not those of"):
        read_all(tmp_path / "a.npz")


def test_episodes_of_other_dtypes_are_named_unless_nothing_is_lost(tmp_path: Path) -> None:
    def save(number: int, dtype: str) -> None:
        state = np.full((2, 3), 1.5).astype(dtype)
        np.savez(tmp_path / f"ep_{number}.npz", state=state, action=np.ones((2, 2), np.float32))

    save(0, "float32")
    save(1, "float16")
    with formats.open_dataset(tmp_path) as source:
        assert source.episode(1)["state"].dtype == np.float32
    save(1, "float64")
    with pytest.raises(FlowleapError, match=r"ep_1\.npz: 'state' has dtype float64, float32 in the episodes"):
        read_all(tmp_path)


# LeRobot


@pytest.mark.parametrize(
    "change",
    [
        {"data_path": "{episode_index:0999999999d}"},
        {"data_path": "{episode_index.__class__}"},
        {"data_path": 3},
        {"features": {"action": 3}},
        {"features": {"action": {"dtype": "float32", "shape": ["x"]}}},
        {"fps": "ten"},
        {"fps": [10]},
        {"chunks_size": "x"},
    ],
)
def test_odd_metadata_of_lerobot_are_one_error(tmp_path: Path, change: dict[str, Any]) -> None:
    pa = pytest.importorskip("pyarrow", reason="needs flowleap[formats]")
    parquet = pytest.importorskip("pyarrow.parquet")
    numbers = {"dtype": "float32", "shape": [2], "names": None}
    info = {"codebase_version": "v2.1", "fps": 10, "data_path": "data/{episode_index}.parquet"}
    info |= {"features": {"action": numbers, "observation.state": numbers}}
    (tmp_path / "x/meta").mkdir(parents=True)
    (tmp_path / "x/data").mkdir()
    (tmp_path / "x/meta/episodes.jsonl").write_text('{"episode_index": 0, "length": 2}')
    (tmp_path / "x/meta/tasks.jsonl").write_text("")
    values = [[1.0, 2.0]] * 2
    table = {"action": values, "observation.state": values, "episode_index": [0, 0], "timestamp": [0.0, 0.1]}
    parquet.write_table(pa.table(table), tmp_path / "x/data/0.parquet")
    (tmp_path / "x/meta/info.json").write_text(json.dumps(info))
    read_all(tmp_path / "x")
    (tmp_path / "x/meta/info.json").write_text(json.dumps(info | change))
    with pytest.raises(FlowleapError, match=r"x'"):
        read_all(tmp_path / "x")
