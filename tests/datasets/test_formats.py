"""All formats together: round trips, what is refused, where a conversion continues, what trains in place."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowleap.datasets import dataset as formats
from flowleap.datasets.columns import flat_names
from flowleap.datasets.dataset import Dataset
from flowleap.datasets.formats.zarr_store import EpisodeStore, EpisodeWriter
from flowleap.envs.task_data import load_columns
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey, Spec
from flowleap.scripts.cli import main as cli

h5py = pytest.importorskip("h5py", reason="needs flowleap[formats]")
for _package in ("pyarrow", "av"):
    pytest.importorskip(_package, reason="needs flowleap[formats]")

WRITABLE = ("zarr", "robomimic", "lerobot")
SUFFIX = {"zarr": ".zarr", "robomimic": ".hdf5", "lerobot": ""}
Episodes = list[dict[str, np.ndarray]]


def make(
    columns: dict[str, ObsKey], lengths: list[int], extra: dict[str, ObsKey], seed: int = 0
) -> tuple[Spec, dict[str, ObsKey], Episodes]:
    """Return a Spec and random episodes that use the whole range of each dtype."""
    spec = Spec(columns, 2, control_hz=12.5, action_convention="delta", source={"env": "réach"})
    rng = np.random.default_rng(seed)
    layout = columns | extra | {"action": extra.get("action", ObsKey((2,)))}

    def values(n: int, column: ObsKey) -> np.ndarray:
        dtype, shape = np.dtype(column.dtype), (n, *column.shape)
        if dtype.kind == "f":
            return rng.normal(size=shape).astype(dtype)
        if dtype.kind == "b":
            return rng.integers(0, 2, shape).astype(bool)
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)

    return spec, extra, [{key: values(n, column) for key, column in layout.items()} for n in lengths]


def write(
    path: Path, name: str, spec: Spec, extra: dict[str, ObsKey], episodes: Episodes, **attrs: Any
) -> Path:
    """Write episodes in a format, with seeds 7, 8, ..."""
    with formats.format_module(name).Writer(path, spec, attrs, extra=extra) as writer:
        for i, episode in enumerate(episodes):
            writer.add(episode, seed=7 + i)
    return path


def transfer(source: Dataset, path: Path, name: str) -> None:
    """Write all that a source holds in another format."""
    with formats.format_module(name).Writer(path, source.spec, source.attrs, extra=source.extra) as writer:
        for i in range(source.n_episodes):
            writer.add(source.episode(i), source.seed(i))


def assert_same(
    source: Dataset, spec: Spec, extra: dict[str, ObsKey], episodes: Episodes, attrs: object
) -> None:
    assert source.spec == spec
    assert source.extra == extra
    assert source.attrs == attrs
    assert source.n_episodes == len(episodes)
    for i, episode in enumerate(episodes):
        assert source.seed(i) == 7 + i
        got = source.episode(i)
        assert set(got) == set(episode)
        for key, values in episode.items():
            assert got[key].dtype == values.dtype, key
            np.testing.assert_array_equal(got[key], values, err_msg=key)


DTYPES = ["float16", "float32", "float64", "int8", "uint16", "int32", "int64", "uint64", "uint8", "bool"]
SHAPES: list[tuple[int, ...]] = [(), (1,), (3,), (2, 3), (1, 2, 2)]
NAMES = st.text(
    st.characters(categories=["L", "N"], include_characters="_-. é関"), min_size=1, max_size=12
).filter(
    lambda name: (
        name not in ("action", "actions", "obs", "next_obs", "task_index")
        and name.isprintable()
        and name[0] not in "._"
    )
)
COLUMN = st.builds(ObsKey, st.sampled_from(SHAPES), st.sampled_from(DTYPES))
IMAGE = ObsKey((16, 18, 3), "uint8", "rgb")


@pytest.mark.parametrize("pair", list(itertools.product(WRITABLE, WRITABLE)), ids="-".join)
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(NAMES, COLUMN, min_size=1, max_size=5),
    st.dictionaries(NAMES, COLUMN, max_size=2),
    st.sampled_from(["float32", "float64", "float16"]),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.booleans(),
)
def test_round_trips_are_exact(
    pair: tuple[str, str],
    columns: dict[str, ObsKey],
    more: dict[str, ObsKey],
    action: str,
    lengths: list[int],
    image: bool,
) -> None:
    extra = {key: column for key, column in more.items() if key not in columns}
    if action != "float32":
        extra["action"] = ObsKey((2,), action)
    if image:
        columns = columns | {"camera": IMAGE}
        extra.pop("camera", None)
    spec, extra, episodes = make(columns, lengths, extra)
    attrs = {"note": [1, "é"], "masks": {"train": [0]}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"first{SUFFIX[pair[0]]}"
        write(path, pair[0], spec, extra, episodes, **attrs)
        assert formats.detect(path) == pair[0]
        for step, name in enumerate((pair[1], pair[0], "zarr")):
            following = Path(folder) / f"step{step}{SUFFIX[name]}"
            with formats.open_dataset(path) as source:
                assert_same(source, spec, extra, episodes, attrs)
                transfer(source, following, name)
            path = following
        with formats.open_dataset(path) as source:
            assert_same(source, spec, extra, episodes, attrs)


def save_npz(path: Path, episodes: Episodes) -> Path:
    flat = {key: np.concatenate([e[key] for e in episodes]) for key in episodes[0]}
    np.savez(path / "a.npz", episode_ends=np.cumsum([len(e["action"]) for e in episodes]), **flat)
    return path / "a.npz"


def save_minari(path: Path, episodes: Episodes) -> Path:
    (path / "data").mkdir()
    (path / "data/metadata.json").write_text(json.dumps({"total_episodes": len(episodes)}))
    with h5py.File(path / "data/main_data.hdf5", "w") as f:
        for i, episode in enumerate(episodes):
            for key, values in episode.items():
                if key in ("action", "rewards"):
                    f[f"episode_{i}/{key.replace('action', 'actions')}"] = values
                else:
                    f[f"episode_{i}/observations/{key}"] = np.concatenate([values, values[-1:]])
            for key in ("terminations", "truncations"):
                f[f"episode_{i}/{key}"] = np.zeros(len(episode["action"]), bool)
    return path


@pytest.mark.parametrize("name", WRITABLE)
@pytest.mark.parametrize("save", [save_npz, save_minari])
def test_what_is_only_read_arrives_exactly(
    tmp_path: Path, save: Callable[[Path, Episodes], Path], name: str
) -> None:
    columns = {f"k{i}": ObsKey(SHAPES[i % len(SHAPES)], dtype) for i, dtype in enumerate(DTYPES)}
    more = {"action": ObsKey((2,), "float64"), "rewards": ObsKey(())}
    episodes = make(columns, [3, 1, 5], more)[2]
    target = tmp_path / f"x{SUFFIX[name]}"
    with formats.open_dataset(save(tmp_path, episodes)) as source:
        source.spec = replace(source.spec, control_hz=10.0)
        transfer(source, target, name)
    with formats.open_dataset(target) as source:
        assert source.spec.observations == columns
        assert source.n_episodes == 3
        for i, episode in enumerate(episodes):
            got = source.episode(i, list(episode))
            for key, values in episode.items():
                assert got[key].dtype == values.dtype, key
                np.testing.assert_array_equal(got[key], values, err_msg=key)


@pytest.mark.parametrize("name", WRITABLE)
def test_hundreds_of_keys_and_one_frame(tmp_path: Path, name: str) -> None:
    columns = {f"sensor_{i}": ObsKey((i % 3 + 1,), DTYPES[i % len(DTYPES)]) for i in range(300)}
    spec, extra, episodes = make(columns, [1, 2], {"reward": ObsKey(())})
    with formats.open_dataset(write(tmp_path / f"x{SUFFIX[name]}", name, spec, extra, episodes)) as source:
        assert_same(source, spec, extra, episodes, {})


def test_names_of_other_formats_stay_distinct() -> None:
    names = flat_names(["obs/a", "obs/action", "a", "b/c", "obs/x.y", "obs/x/y"], ["obs/"])
    assert names == {"a": "obs/a", "obs.action": "obs/action", "a_": "a", "b.c": "b/c", "x.y": "obs/x.y"} | {
        "obs.x.y": "obs/x/y"
    }


@pytest.mark.parametrize("name", WRITABLE)
def test_an_error_leaves_nothing_and_others_are_not_overwritten(tmp_path: Path, name: str) -> None:
    spec, extra, episodes = make({"state": ObsKey((3,))}, [4, 2], {})
    path = tmp_path / f"x{SUFFIX[name]}"
    writer = formats.format_module(name).Writer
    poisoned = [episodes[0], episodes[1] | {"state": np.array([[0, 0, 0], [0, np.nan, 0]])}]
    with pytest.raises(FlowleapError, match="episode 1: 'state' is not finite at frame 1"):
        write(path, name, spec, extra, poisoned)
    with pytest.raises(FlowleapError, match="no episode was added"), writer(path, spec):
        pass
    assert os.listdir(tmp_path) == []
    write(path, name, spec, extra, episodes)
    with pytest.raises(FlowleapError, match="exists already"):
        writer(path, spec)
    with writer(path, spec, overwrite=True) as w:
        w.add(episodes[1])
    with formats.open_dataset(path) as source:
        assert source.n_episodes == 1
    thesis = tmp_path / f"thesis{SUFFIX[name]}" / "x.tex"
    thesis.parent.mkdir()
    thesis.touch()
    with pytest.raises(FlowleapError, match="it will not be overwritten"):
        writer(thesis.parent, spec, overwrite=True)


# Zip files of zarr stores


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_zipped_store_reads_like_its_folder(tmp_path: Path, zarr_format: int) -> None:
    folder = tmp_path / "a.zarr"
    group = zarr.create_group(folder, zarr_format=zarr_format)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    group.create_array("data/state", data=rng.normal(size=(25, 3)), chunks=(10, 3))
    group.create_array("data/action", data=rng.normal(size=(25, 2)).astype(np.float32), chunks=(10, 2))
    group.create_array("meta/episode_ends", data=np.array([10, 25]))
    archive = Path(shutil.make_archive(str(folder), "zip", folder))
    store, zipped = EpisodeStore(folder), EpisodeStore(archive)
    assert (zipped.keys, zipped.n_frames) == (["state", "action"], 25)
    for key, values in store.read(["state", "action"]).items():
        np.testing.assert_array_equal(zipped.read([key])[key], values)
    assert formats.detect(archive) == "zarr"
    data = load_columns(None, formats.open_dataset(archive))
    columns, ends, _ = data.columns(), data.episode_ends, data.spec
    assert columns["state"].shape == (25, 3)
    assert ends.tolist() == [10, 25]

    with zipfile.ZipFile(tmp_path / "b.zarr.zip", "w") as out, zipfile.ZipFile(archive) as whole:
        for name in whole.namelist():
            if not name.endswith(("state/1.0", "state/c/1/0")):
                out.writestr(name, whole.read(name))
    with pytest.raises(FlowleapError, match="1 chunk file"):
        EpisodeStore(tmp_path / "b.zarr.zip").read(["state"])
    (tmp_path / "c.zarr.zip").write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(FlowleapError, match=r"c\.zarr\.zip' is not a whole zip file"):
        EpisodeStore(tmp_path / "c.zarr.zip")


# Conversions


def test_the_push_t_demonstrations_go_around(pusht_human: Path, tmp_path: Path) -> None:
    words = ["keys=[state,keypoint]", "control_hz=10"]
    assert cli.main(["convert", f"source={pusht_human}", f"out={tmp_path}/a.hdf5", *words]) == 0
    assert cli.main(["convert", f"source={tmp_path}/a.hdf5", f"out={tmp_path}/b", "to=lerobot"]) == 0
    assert cli.main(["convert", f"source={tmp_path}/b", f"out={tmp_path}/c.zarr"]) == 0
    original, back = EpisodeStore(pusht_human), EpisodeStore(tmp_path / "c.zarr")
    assert back.spec is not None
    assert list(back.spec.observations) == ["state", "keypoint"]
    assert back.spec.control_hz == 10
    np.testing.assert_array_equal(back.episode_ends, original.episode_ends)
    for key, values in original.read(["state", "keypoint", "action"]).items():
        np.testing.assert_array_equal(back.read([key])[key], values)


KILLED = """
import os, sys
from flowleap.datasets.formats import zarr_writer as writer
from flowleap.scripts.cli import main as cli
writer._BUFFER_BYTES = 400
append, calls = writer.Journal.append, []
def counted(self, *block):
    append(self, *block)
    calls.append(block)
    if len(calls) == 3:
        os.kill(os.getpid(), NUMBER)
writer.Journal.append = counted
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_a_killed_conversion_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int, code: int
) -> None:
    spec, extra, episodes = make({"state": ObsKey((3,))}, [5, 9, 1, 30, 2, 8, 8, 8], {"reward": ObsKey(())})
    source = write(tmp_path / "a.hdf5", "robomimic", spec, extra, episodes, note="n")
    words = ["convert", f"source={source}", f"out={tmp_path}/b.zarr"]
    script = KILLED.replace("NUMBER", str(int(number)))
    result = subprocess.run([sys.executable, "-c", script, *words], check=False)
    assert result.returncode == code
    assert not (tmp_path / "b.zarr").exists()
    (left,) = [p for p in tmp_path.iterdir() if p != source]
    blocks = [json.loads(line) for line in (left / "journal.jsonl").read_text().splitlines()[1:]]
    done = sum(len(block["lengths"]) for block in blocks)
    assert 0 < done < len(episodes)

    with (left / "journal.jsonl").open("a") as stream:
        stream.write('{"lengths": [1')  # as a loss of power may leave it
    assert cli.main(words) == 0
    assert f"going on after {done} episodes" in capsys.readouterr().err
    with formats.open_dataset(tmp_path / "b.zarr") as store:
        assert_same(store, spec, extra, episodes, {"note": "n"})
    assert sorted(os.listdir(tmp_path)) == ["a.hdf5", "b.zarr"]


def test_a_changed_source_starts_anew(tmp_path: Path) -> None:
    spec, _, episodes = make({"state": ObsKey((3,))}, [3, 4], {})
    first = EpisodeWriter(tmp_path / "a.zarr", spec, job="one")
    first.__enter__()
    first.add(episodes[0])
    first._flush()
    with pytest.raises(FlowleapError, match="another process is writing"):
        EpisodeWriter(tmp_path / "a.zarr", spec, job="one").__enter__()
    assert first._journal is not None
    first._journal.close()  # as the kernel does when a process is killed
    with EpisodeWriter(tmp_path / "a.zarr", spec, job="two") as other:
        assert other.n_episodes == 0
        other.add(episodes[1])
    with EpisodeWriter(tmp_path / "a.zarr", spec, overwrite=True, job="one") as again:
        assert again.n_episodes == 1
        again.add(episodes[1])
    assert EpisodeStore(tmp_path / "a.zarr").episode_ends.tolist() == [3, 7]


def test_nothing_is_mistaken_for_a_dataset(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(FlowleapError, match="none of the formats umi, zarr"):
        formats.detect(tmp_path / "a.txt")
    with pytest.raises(FlowleapError, match=r"no format 'robomimc'.*did you mean 'robomimic'"):
        formats.open_dataset(tmp_path, "robomimc")
    write(tmp_path / "b.zarr", "zarr", *make({"state": ObsKey((3,))}, [2], {}))
    with pytest.raises(FlowleapError, match="has no filter 'train'"):
        formats.open_dataset(tmp_path / "b.zarr", filter="train")


@pytest.mark.parametrize("name", ["robomimic", "lerobot"])
def test_low_dim_data_train_in_place(tmp_path: Path, name: str) -> None:
    columns = {"state": ObsKey((3,), "float64"), "camera": IMAGE}
    spec, extra, episodes = make(columns, [4, 2], {"reward": ObsKey(())})
    path = write(tmp_path / f"x{SUFFIX[name]}", name, spec, extra, episodes)
    data = load_columns(None, formats.open_dataset(path))
    loaded, ends, got = data.columns(), data.episode_ends, data.spec
    assert list(got.observations) == ["state"]
    assert set(loaded) == {"state", "action"}
    assert ends.tolist() == [4, 6]
    np.testing.assert_array_equal(loaded["state"], np.concatenate([e["state"] for e in episodes]))
    with formats.open_dataset(path) as source, pytest.raises(FlowleapError, match="did you mean 'state'"):
        source.columns(["stat"])
