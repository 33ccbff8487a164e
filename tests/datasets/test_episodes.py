"""The episode store: what it reads, what it writes, and what it refuses."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from flowleap.datasets.formats.zarr_store import EpisodeStore, EpisodeWriter
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey, Spec

SPEC = Spec({"state": ObsKey((3,))}, action_dim=2, control_hz=10.0)


def episode(length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Return one random episode of `SPEC`."""
    rng = np.random.default_rng(seed)
    return {
        "state": rng.normal(size=(length, 3)).astype(np.float32),
        "action": rng.normal(size=(length, 2)).astype(np.float32),
    }


def write(path: Path, lengths: tuple[int, ...] = (4, 1, 3)) -> Path:
    """Write a small store of `SPEC`."""
    with EpisodeWriter(path, SPEC) as writer:
        for i, length in enumerate(lengths):
            writer.add(episode(length, i), seed=100 + i)
    return path


def write_then_raise(path: Path, error: BaseException, n: int = 1, **options: bool) -> None:
    """Add `n` episodes to a new store, then raise inside the block."""
    with EpisodeWriter(path, SPEC, **options) as writer:
        for i in range(n):
            writer.add(episode(4, i))
        raise error


def write_foreign(path: Path, zarr_format: int = 2, compressors: object = "auto", n: int = 25) -> zarr.Group:
    """Write a store as other projects do: no Spec, several chunks a column."""
    group = zarr.create_group(path, zarr_format=zarr_format)
    rng = np.random.default_rng(0)
    for key, width in (("state", 3), ("action", 2)):
        array = group.create_array(
            f"data/{key}",
            shape=(n, width),
            chunks=(10, width),
            dtype="f4",
            compressors=compressors,
            config={"write_empty_chunks": True},
        )
        array[:] = rng.normal(size=(n, width))
    group.create_array("meta/episode_ends", data=np.array([10, n]))
    return group


# Reading


def test_the_human_push_t_demonstrations_open_as_they_are(pusht_human: Path) -> None:
    store = EpisodeStore(pusht_human)
    assert (store.n_episodes, store.n_frames, store.has_spec, store.attrs) == (206, 25650, False, {})
    assert store.keys == ["img", "keypoint", "n_contacts", "state", "action"]
    assert store.shape("keypoint") == (9, 2)
    assert store.dtype("state") == np.float32
    columns = store.read(["state", "action"])
    assert columns["state"].shape == (25650, 5)
    last = store.episode(-1, ["action"])["action"]
    np.testing.assert_array_equal(last, columns["action"][store.episode_ends[-2] :])
    spec = store.spec
    assert spec.observations["img"] == ObsKey((96, 96, 3), "uint8", "rgb")
    assert spec.observations["state"] == ObsKey((5,), "float32", "lowdim")
    assert (spec.action_dim, spec.n_obs_steps, spec.horizon, spec.n_action_steps) == (2, 1, 1, 1)


def test_a_slice_of_episodes(tmp_path: Path) -> None:
    store = EpisodeStore(write(tmp_path / "a.zarr"))
    whole = store.read(["state"])["state"]
    np.testing.assert_array_equal(store.read(["state"], slice(1, None))["state"], whole[4:])
    assert store.read(["state"], slice(2, 2))["state"].shape == (0, 3)
    with pytest.raises(FlowleapError, match="step 2"):
        store.read(["state"], slice(None, None, 2))
    with pytest.raises(FlowleapError, match="episodes 0 to 2, not 3"):
        store.episode(3)


DTYPES = ["float16", "float32", "float64", "int8", "uint16", "int64", "uint8", "bool", ">f4"]
NAMES = st.text(st.characters(categories=["L", "N"], include_characters="_- é関"), min_size=1, max_size=12)
KEYS = NAMES.filter(lambda name: name != "action" and not name.startswith("__") and name.isprintable())


@settings(max_examples=15, deadline=None)
@given(
    st.dictionaries(
        KEYS, st.tuples(st.sampled_from(DTYPES), st.sampled_from([(), (1,), (2, 3)])), min_size=1, max_size=3
    ),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.booleans(),
)
def test_round_trip(keys: dict[str, tuple[str, tuple[int, ...]]], lengths: list[int], seeded: bool) -> None:
    spec = Spec({key: ObsKey(shape, dtype) for key, (dtype, shape) in keys.items()}, 2, source={"env": "é"})
    rng = np.random.default_rng(0)
    episodes = [
        {key: rng.integers(0, 100, size=(n, *shape)).astype(dtype) for key, (dtype, shape) in keys.items()}
        | {"action": rng.normal(size=(n, 2)).astype(np.float32)}
        for n in lengths
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "données.zarr"
        with EpisodeWriter(path, spec, {"note": np.float32(0.5)}) as writer:
            for i, columns in enumerate(episodes):
                writer.add(columns, seed=i if seeded else None)
            writer.attrs["late"] = [1, 2]
        store = EpisodeStore(path)
        assert store.spec == spec
        assert store.attrs == {"note": 0.5, "late": [1, 2]}
        assert store.keys == [*keys, "action"]
        assert store.episode_ends.tolist() == np.cumsum(lengths).tolist()
        assert (store.episode_seeds is None) == (not seeded)
        for i, columns in enumerate(episodes):
            for key, values in store.episode(i).items():
                np.testing.assert_array_equal(values, columns[key])
                assert values.dtype == columns[key].dtype.newbyteorder("=")
        assert os.listdir(folder) == ["données.zarr"]


def test_many_episodes_are_streamed_in_several_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowleap.datasets.formats.zarr_writer._BUFFER_BYTES", 100)
    monkeypatch.setattr("flowleap.datasets.formats.zarr_writer._CHUNK_BYTES", 64)
    lengths = (3, 9, 1, 1, 1, 20, 2)
    store = EpisodeStore(write(tmp_path / "a.zarr", lengths))
    for i, length in enumerate(lengths):
        np.testing.assert_array_equal(store.episode(i)["state"], episode(length, i)["state"])


# Stores that are not what they should be


def test_a_missing_path_lists_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "pusht.zarr")
    with pytest.raises(
        FlowleapError, match=r"pussht.zarr' does not exist; did you mean 'pusht.zarr'.*data/<key>"
    ):
        EpisodeStore(tmp_path / "pussht.zarr")
    with pytest.raises(FlowleapError, match=r"not a zarr group.*it contains pusht\.zarr"):
        EpisodeStore(tmp_path)
    (tmp_path / "file.zarr").write_text("hello")
    with pytest.raises(FlowleapError, match=r"file\.zarr' is not a zarr group"):
        EpisodeStore(tmp_path / "file.zarr")


def test_no_episode_ends_and_no_columns(tmp_path: Path) -> None:
    write_foreign(tmp_path / "a.zarr")
    shutil.rmtree(tmp_path / "a.zarr" / "meta" / "episode_ends")
    with pytest.raises(FlowleapError, match="meta/episode_ends is missing"):
        EpisodeStore(tmp_path / "a.zarr")
    zarr.create_group(tmp_path / "b.zarr")
    with pytest.raises(FlowleapError, match="no columns in data/"):
        EpisodeStore(tmp_path / "b.zarr")


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([10, 10, 25], "entry 1 is 10 after 10"),
        ([12, 10, 25], "entry 1 is 10 after 12"),
        ([0, 25], "entry 0 is 0 as the first end"),
        ([-3, 25], "entry 0 is -3"),
        ([10, 24], "has 25 frames, but the last episode ends at 24"),
        ([10, 26], "has 25 frames, but the last episode ends at 26"),
        ([], "empty"),
        ([10.5, 25.0], "one vector of whole numbers"),
    ],
)
def test_bad_episode_ends(tmp_path: Path, ends: list[float], message: str) -> None:
    group = write_foreign(tmp_path / "a.zarr")
    group.create_array("meta/episode_ends", data=np.array(ends, dtype=None if ends else int), overwrite=True)
    with pytest.raises(FlowleapError, match=message):
        EpisodeStore(tmp_path / "a.zarr")


def test_columns_of_different_lengths(tmp_path: Path) -> None:
    write_foreign(tmp_path / "a.zarr").create_array("data/extra", data=np.zeros((24, 1)))
    with pytest.raises(FlowleapError, match="'extra' has 24 frames, but the last episode ends at 25"):
        EpisodeStore(tmp_path / "a.zarr")


def test_an_unknown_key_is_answered_with_the_nearest(tmp_path: Path) -> None:
    store = EpisodeStore(write(tmp_path / "a.zarr"))
    with pytest.raises(FlowleapError, match=r"no column 'stat', only state, action; did you mean 'state'"):
        store.read(["stat"])


def test_not_a_number_is_located(tmp_path: Path) -> None:
    group = write_foreign(tmp_path / "a.zarr")
    group["data/state"][12, 1] = np.nan
    store = EpisodeStore(tmp_path / "a.zarr")
    with pytest.raises(FlowleapError, match=r"episode 1: 'state' is not finite at frame 2; .* drop=\[1\]"):
        store.columns(["action", "state"])
    assert np.isnan(store.episode(1)["state"]).sum() == 1
    assert np.isnan(store.read(["state"])["state"]).sum() == 1
    assert store.episode(0)["state"].shape == (10, 3)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_column_of_text_is_refused_and_hides_no_other(tmp_path: Path, zarr_format: int) -> None:
    group = write_foreign(tmp_path / "a.zarr", zarr_format)
    words = group.create_array("data/words", shape=(25,), chunks=(25,), dtype=str)
    words[:] = np.array(["x"] * 25)
    store = EpisodeStore(tmp_path / "a.zarr")
    assert store.keys == ["state", "words", "action"]
    assert list(store.spec.observations) == ["state"]
    with pytest.raises(FlowleapError, match="'words' cannot be read"):
        store.read(["words"])


class Malice:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("where", ["filters", "compressor"])
@pytest.mark.parametrize("dtype", ["<f4", "|O"])
def test_nothing_is_unpickled(tmp_path: Path, where: str, dtype: str) -> None:
    write_foreign(tmp_path / "a.zarr", compressors=None, n=10)
    column = tmp_path / "a.zarr" / "data" / "state"
    trace = tmp_path / "trace"
    poison = pickle.dumps(Malice(trace))
    pickle.loads(poison)
    assert trace.exists(), "the payload must work where it is unpickled"
    trace.unlink()

    metadata = json.loads((column / ".zarray").read_text())
    codec: object = {"id": "pickle", "protocol": 5}
    metadata |= {"dtype": dtype, where: [codec] if where == "filters" else codec, "fill_value": None}
    (column / ".zarray").write_text(json.dumps(metadata))
    (column / "0.0").write_bytes(poison)
    (tmp_path / "a.zarr" / "meta" / "episode_ends" / "0").unlink()
    zarr.open_group(tmp_path / "a.zarr").create_array(
        "meta/episode_ends", data=np.array([10]), overwrite=True
    )
    with pytest.raises(FlowleapError, match="'state' cannot be read"):
        EpisodeStore(tmp_path / "a.zarr").read(["state"])
    assert not trace.exists()


def test_a_store_of_a_later_format_and_a_tampered_spec(tmp_path: Path) -> None:
    file = write(tmp_path / "a.zarr") / "zarr.json"
    metadata = json.loads(file.read_text())
    file.write_text(json.dumps(metadata | {"attributes": metadata["attributes"] | {"flowleap_format": 99}}))
    with pytest.raises(FlowleapError, match="has format 99, this flowleap reads 1: upgrade"):
        EpisodeStore(tmp_path / "a.zarr")
    del metadata["attributes"]["flowleap_spec"]["action_dim"]
    file.write_text(json.dumps(metadata))
    with pytest.raises(FlowleapError, match=r"a\.zarr', flowleap_spec: .*action_dim"):
        EpisodeStore(tmp_path / "a.zarr")


# Damaged files


def damage(file: Path, how: str) -> None:
    """Cut, empty, alter or remove a chunk file."""
    data = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "altered":
        file.write_bytes(data[:-6] + bytes([data[-6] ^ 1]) + data[-5:])
    else:
        file.write_bytes({"cut": data[: len(data) // 2], "short": data[:-1], "empty": b""}[how])


@pytest.mark.parametrize("how", ["missing", "cut", "short", "empty", "altered"])
@pytest.mark.parametrize("column", ["data/state/c/0/0", "meta/episode_ends/c/0"])
def test_damage_to_our_stores_is_noticed(tmp_path: Path, how: str, column: str) -> None:
    damage(write(tmp_path / "a.zarr") / column, how)
    with pytest.raises(FlowleapError, match=r"a\.zarr': .*(missing|truncated or damaged)"):
        EpisodeStore(tmp_path / "a.zarr").read(["state"])


@pytest.mark.parametrize("how", ["missing", "cut", "short", "empty"])
@pytest.mark.parametrize("compressors", ["auto", None])
def test_damage_to_zarr_v2_stores_is_noticed(tmp_path: Path, how: str, compressors: object) -> None:
    write_foreign(tmp_path / "a.zarr", 2, compressors)
    damage(tmp_path / "a.zarr" / "data" / "state" / "1.0", how)
    store = EpisodeStore(tmp_path / "a.zarr")
    assert store.episode(0)["state"].shape == (10, 3)  # needs other chunks only
    for _ in range(2):
        with pytest.raises(FlowleapError, match=r"data/state.*(missing|truncated)|missing.*data/state/1\.0"):
            store.read(["state"])


def test_a_truncated_chunk_of_the_human_demonstrations(pusht_human: Path, tmp_path: Path) -> None:
    for part in (".zgroup", "meta", "data/.zgroup", "data/state", "data/action"):
        source, target = pusht_human / part, tmp_path / "a.zarr" / part
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    damage(tmp_path / "a.zarr" / "data" / "state" / "7.0", "cut")
    with pytest.raises(FlowleapError, match=r"chunk data/state/7\.0 is truncated"):
        EpisodeStore(tmp_path / "a.zarr").read(["state", "action"])


@pytest.mark.parametrize(("zarr_format", "chunk"), [(2, "1.0"), (3, "c/1/0")])
def test_chunks_that_a_writer_left_out(tmp_path: Path, zarr_format: int, chunk: str) -> None:
    write_foreign(tmp_path / "a.zarr", zarr_format)["data/state"][10:20] = 1.0
    (tmp_path / "a.zarr" / "data" / "state" / chunk).unlink()
    with pytest.raises(
        FlowleapError, match=rf"1 chunk file\(s\) are missing, .* data/state/{chunk};.*fill_missing"
    ):
        EpisodeStore(tmp_path / "a.zarr").read(["state"])
    values = EpisodeStore(tmp_path / "a.zarr", fill_missing=True).read(["state"])["state"]
    assert not values[10:20].any()
    assert values[:10].all()


# Writing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stat": np.zeros((4, 3))}, "episode 1: 'stat' is not in the Spec; did you mean 'state'"),
        ({"state": np.zeros((4, 2))}, r"episode 1: 'state' has shape \(4, 2\), expected \(frames, 3\)"),
        ({"state": np.zeros((4, 3, 1))}, "'state' has shape"),
        ({"state": np.zeros((5, 3))}, "same number of frames"),
        ({"state": np.zeros((0, 3)), "action": np.zeros((0, 2))}, "same number of frames >= 1"),
        ({"state": np.full((4, 3), np.nan)}, "episode 1: 'state' is not finite at frame 0"),
        ({"action": np.full((4, 2), 1e300)}, "episode 1: 'action' is not finite at frame 0"),
        ({"state": np.zeros((4, 3), complex)}, "dtype complex128"),
        ({"state": np.full((4, 3), "a")}, "dtype <U1"),
        ({"state": np.full((4, 3), 2**24 + 1)}, "float32 cannot hold exactly"),
    ],
)
def test_episodes_that_do_not_fit_the_spec(
    tmp_path: Path, change: dict[str, np.ndarray], message: str
) -> None:
    with EpisodeWriter(tmp_path / "a.zarr", SPEC) as writer:
        writer.add(episode(4))
        with pytest.raises(FlowleapError, match=message):
            writer.add(episode(4) | change)
        with pytest.raises(FlowleapError, match="episode 1: 'action' is missing"):
            writer.add({"state": np.zeros((4, 3))})
        assert (writer.n_episodes, writer.n_frames) == (1, 4)
    assert EpisodeStore(tmp_path / "a.zarr").n_episodes == 1


def test_whole_numbers_that_a_column_cannot_hold(tmp_path: Path) -> None:
    spec = Spec({"count": ObsKey((), "int8")}, 1)
    with EpisodeWriter(tmp_path / "a.zarr", spec) as writer:
        writer.add({"count": np.array([-5, 127]), "action": np.zeros((2, 1))})
        with pytest.raises(FlowleapError, match="int8 cannot hold exactly"):
            writer.add({"count": np.array([128]), "action": np.zeros((1, 1))})
        with pytest.raises(FlowleapError, match="dtype float64, which does not fit the Spec's int8"):
            writer.add({"count": np.array([1.0]), "action": np.zeros((1, 1))})


@pytest.mark.parametrize("key", ["a/b", "a\\b", ".a", "__a", "", "a\nb", "x" * 300, "action"])
def test_keys_that_cannot_name_a_column(tmp_path: Path, key: str) -> None:
    with pytest.raises(FlowleapError, match="cannot"):
        EpisodeWriter(tmp_path / "a.zarr", Spec({key: ObsKey((3,))}, 2))


def test_an_existing_store_is_replaced_only_by_a_complete_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr")
    with pytest.raises(FlowleapError, match="exists already"):
        EpisodeWriter(path, SPEC)
    with pytest.raises(RuntimeError):
        write_then_raise(path, RuntimeError(), overwrite=True)
    assert EpisodeStore(path).n_frames == 8
    with EpisodeWriter(path, SPEC, overwrite=True) as writer:
        writer.add(episode(9))
        assert EpisodeStore(path).n_frames == 8
    assert EpisodeStore(path).n_frames == 9
    assert os.listdir(tmp_path) == ["a.zarr"]


def test_what_is_no_store_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    with pytest.raises(FlowleapError, match="not a zarr store: it will not be overwritten"):
        EpisodeWriter(tmp_path / "thesis", SPEC, overwrite=True)


def test_an_exception_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        write_then_raise(tmp_path / "a.zarr", RuntimeError())
    with pytest.raises(KeyboardInterrupt):
        write_then_raise(tmp_path / "a.zarr", KeyboardInterrupt(), n=0)
    with pytest.raises(FlowleapError, match="no episode was added"), EpisodeWriter(tmp_path / "a.zarr", SPEC):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("keep", [True, False])
def test_an_interrupt_keeps_what_was_recorded(tmp_path: Path, keep: bool) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_then_raise(tmp_path / "a.zarr", KeyboardInterrupt(), keep_interrupted=keep)
    assert os.listdir(tmp_path) == (["a.zarr"] if keep else [])
    if keep:
        np.testing.assert_array_equal(
            EpisodeStore(tmp_path / "a.zarr").episode(0)["state"], episode(4)["state"]
        )


def test_an_interrupt_between_two_columns_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowleap.datasets.formats.zarr_writer._BUFFER_BYTES", 1)
    set_rows, calls = zarr.Array.__setitem__, []

    def interrupted(array: zarr.Array, selection: object, values: object) -> None:
        calls.append(array.path)
        if len(calls) == 4:  # the action column of the second episode
            raise KeyboardInterrupt("between")
        set_rows(array, selection, values)  # type: ignore[arg-type]

    monkeypatch.setattr(zarr.Array, "__setitem__", interrupted)
    with pytest.raises(KeyboardInterrupt, match="between"):
        write_then_raise(tmp_path / "a.zarr", RuntimeError("not reached"), n=5)
    store = EpisodeStore(tmp_path / "a.zarr")
    assert store.n_episodes == 2
    for i in range(2):
        for key, values in store.episode(i).items():
            np.testing.assert_array_equal(values, episode(4, i)[key])


def test_a_full_disk_names_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zarr.Array, "__setitem__", full)
    with (
        pytest.raises(FlowleapError, match=r"cannot write dataset '.*a\.zarr': No space left on device"),
        EpisodeWriter(tmp_path / "a.zarr", SPEC) as writer,
    ):
        writer.add(episode(4))
    assert os.listdir(tmp_path) == []


def test_a_killed_writer_leaves_no_store(tmp_path: Path) -> None:
    code = (
        "import os, sys, numpy as np\n"
        "from flowleap.datasets.formats.zarr_store import EpisodeWriter\n"
        "from flowleap.policy.core.spec import ObsKey, Spec\n"
        "with EpisodeWriter(sys.argv[1], Spec({'state': ObsKey((3,))}, 2)) as writer:\n"
        "    writer.add({'state': np.zeros((4, 3)), 'action': np.zeros((4, 2))})\n"
        "    writer._flush()\n"
        "    os._exit(9)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.zarr")], check=False)
    assert result.returncode == 9
    assert not (tmp_path / "a.zarr").exists()
    (leftover,) = tmp_path.iterdir()
    assert leftover.name.startswith(".")
    with pytest.raises(FlowleapError, match="episode_ends is missing"):
        EpisodeStore(leftover)
    assert EpisodeStore(write(tmp_path / "a.zarr")).n_episodes == 3


def test_a_column_of_zeros_is_written(tmp_path: Path) -> None:
    """Zarr leaves chunks of fill values out unless told otherwise; a missing chunk must mean damage."""
    spec = Spec({"state": ObsKey((2,))}, action_dim=2)
    with EpisodeWriter(tmp_path / "a.zarr", spec) as writer:
        writer.add({"state": np.ones((30, 2)), "action": np.zeros((30, 2))})
    columns = EpisodeStore(tmp_path / "a.zarr").read(["state", "action"])
    assert np.array_equal(columns["action"], np.zeros((30, 2)))
