"""Datasets that are not where or what they should be: one level down, zipped, almost of a format; remedies are run."""

from __future__ import annotations

import gc
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from flowleap.datasets import dataset as formats
from flowleap.envs.task_data import load_columns
from flowleap.policy.core.errors import FlowleapError

N = 12
STATE = np.arange(3.0 * N).reshape(N, 3)
ACTION = -np.arange(2.0 * N).reshape(N, 2)


def store(path: Path, ends: Any = (5, 12), zarr_format: int = 2) -> Path:
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)  # type: ignore[arg-type]
    group.create_array("data/state", data=STATE, chunks=(4, 3))
    group.create_array("data/action", data=ACTION, chunks=(4, 2))
    if ends is not None:
        group.create_array("meta/episode_ends", data=np.asarray(ends))
    return path


def zipped(folder: Path, archive: Path, inside: str = "") -> Path:
    """Zip a folder, with the names beginning with `inside`."""
    with zipfile.ZipFile(archive, "w") as out:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            out.write(file, f"{inside}{file.relative_to(folder)}")
        out.writestr(f"__MACOSX/{inside}._.zgroup", b"\0")
    return archive


def assert_whole(path: Path, ends: list[int]) -> None:
    """Raise unless a dataset holds all of STATE and ACTION, in these episodes."""
    data = load_columns(None, formats.open_dataset(path))
    assert data.episode_ends.tolist() == ends
    np.testing.assert_array_equal(data.columns()["state"], STATE)
    np.testing.assert_array_equal(data.columns()["action"], ACTION)


def problem(path: Path) -> str:
    """What is said of a dataset that cannot be opened."""
    with pytest.raises(FlowleapError) as error:
        formats.open_dataset(path)
    text = str(error.value)
    del error
    gc.collect()
    return text


def run_remedy(text: str) -> None:
    """Run the line of Python that a message advises."""
    (line,) = re.findall('python -c "(.*)"', text)
    exec(line, {})


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("inside", ["", "mine.zarr/", "data/set/mine.zarr/"])
@pytest.mark.parametrize("name", ["a.zarr.zip", "a.zip", "a.zarr", "a"])
def test_a_zip_may_hold_its_store_in_a_folder_and_have_any_name(
    tmp_path: Path, zarr_format: int, inside: str, name: str
) -> None:
    folder = store(tmp_path / "source.zarr", zarr_format=zarr_format)
    archive = zipped(folder, tmp_path / name, inside)
    assert formats.detect(archive) == "zarr"
    assert_whole(archive, [5, 12])


def test_zips_without_one_store_are_named(tmp_path: Path) -> None:
    folder = store(tmp_path / "source.zarr")
    archive = zipped(folder, tmp_path / "a.zip", "one.zarr/")
    with zipfile.ZipFile(archive, "a") as out:
        out.writestr("two.zarr/.zgroup", b"{}")
    assert "is a zip with the zarr stores one.zarr, two.zarr; unpack it with `python -m zip" in problem(
        archive
    )
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as out:
        out.writestr("readme.txt", b"hello")
    assert "is a zip with no zarr store; unpack it with" in problem(tmp_path / "b.zip")
    assert_whole(zipped(store(tmp_path / "c.zarr", [12]), tmp_path / "c.zip", "damaged/"), [12])
    whole = (tmp_path / "c.zip").read_bytes()
    (tmp_path / "c.zip").write_bytes(whole[: len(whole) // 2])
    assert "is not a whole zip file" in problem(tmp_path / "c.zip")


def flat(path: Path, **arrays: Any) -> Path:
    np.savez(path, **{"state": STATE, "action": ACTION, "episode_ends": [5, 12]} | arrays)
    return path


@pytest.mark.parametrize("name", ["replay.zarr", "flat.npz"])
@pytest.mark.parametrize("below", ["", "nest", "nest/deeper"])
def test_a_folder_with_one_dataset_is_opened(tmp_path: Path, name: str, below: str) -> None:
    folder = tmp_path / "download" / below
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("# A dataset")
    (folder / ".cache").mkdir()
    store(folder / ".cache" / "hidden.zarr")
    (store if name.endswith("zarr") else flat)(folder / name)
    assert_whole(tmp_path / "download", [5, 12])
    with formats.open_dataset(tmp_path / "download", formats.detect(tmp_path / "download")) as source:
        assert source.path == folder / name


def test_a_folder_with_several_datasets_lists_them(tmp_path: Path) -> None:
    store(tmp_path / "a.zarr")
    (tmp_path / "b").mkdir()
    flat(tmp_path / "b" / "c.npz")
    text = problem(tmp_path)
    assert f"holds 2 datasets, say which one: {tmp_path}/a.zarr, {tmp_path}/b/c.npz" in text
    shutil.rmtree(tmp_path / "a.zarr")
    elsewhere = store(tmp_path.parent / f"{tmp_path.name}_elsewhere.zarr").parent
    (tmp_path / "link").symlink_to(elsewhere, target_is_directory=True)
    assert_whole(tmp_path, [5, 12])


def test_many_files_are_not_all_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Path] = []
    asked = formats._format_of
    monkeypatch.setattr(formats, "_format_of", lambda path: looked.append(path) or asked(path))
    for i in range(2100):
        (tmp_path / f"{i}.txt").touch()
    assert "not a zarr group" in problem(tmp_path)
    assert len(looked) < 2010


# Almost a store


def test_ends_may_be_floats_that_are_whole(tmp_path: Path) -> None:
    assert_whole(store(tmp_path / "a.zarr", [5.0, 12.0]), [5, 12])
    assert_whole(flat(tmp_path / "a.npz", episode_ends=[5.0, 12.0]), [5, 12])
    for ends in ([5.5, 12.0], [5.0, np.inf], [np.nan, 12.0]):
        assert "one vector of whole numbers" in problem(store(tmp_path / "b.zarr", ends))
        assert "must be whole numbers that increase" in problem(flat(tmp_path / "b.npz", episode_ends=ends))


@pytest.mark.parametrize(
    ("ends", "message", "mended"),
    [
        ([0, 5, 12], "entry 0 is 0 as the first end", [5, 12]),
        ([5, 5, 12], "entry 1 is 5 after 5", [5, 12]),
        ([5, 8], "'action' has 12 frames, but the last episode ends at 8", [5, 8, 12]),
        (None, "meta/episode_ends is missing", [12]),
    ],
)
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_the_line_that_writes_other_ends_works(
    tmp_path: Path, ends: Any, message: str, mended: list[int], zarr_format: int
) -> None:
    path = store(tmp_path / "a.zarr", ends, zarr_format)
    text = problem(path)
    assert message in text
    run_remedy(text)
    assert_whole(path, mended)


def test_a_zip_has_to_be_unpacked_for_that(tmp_path: Path) -> None:
    archive = zipped(store(tmp_path / "a.zarr", [0, 12]), tmp_path / "a.zip")
    assert "; unpack the zip; then, without the empty episodes, python -c" in problem(archive)


@pytest.mark.parametrize("arrays", [{}, {"infos": np.array([{"a": 1}] * N, object)}])
def test_an_npz_without_ends_says_how_to_write_them(tmp_path: Path, arrays: dict[str, Any]) -> None:
    np.savez(tmp_path / "a.npz", state=STATE, action=ACTION, **arrays)
    text = problem(tmp_path / "a.npz")
    assert "episode_ends cannot be read (is missing)" in text
    run_remedy(text)
    assert_whole(tmp_path / "a.npz", [12])


def test_an_npz_whose_ends_do_not_fit(tmp_path: Path) -> None:
    text = problem(flat(tmp_path / "a.npz", episode_ends=[5, 9]))
    assert "does not fit: the last episode ends at 9, the actions have 12 rows" in text


# Nothing that is read


def test_a_table_becomes_a_dataset(tmp_path: Path) -> None:
    rows = np.concatenate([STATE, ACTION[:, :1]], axis=1)
    np.savetxt(tmp_path / "a.csv", rows, delimiter=",", header="x,y,z,u")
    run_remedy(problem(tmp_path / "a.csv"))
    with formats.open_dataset(tmp_path / "a.npz") as source:
        np.testing.assert_array_equal(source.episode(0)["state"], STATE)
        np.testing.assert_array_equal(source.episode(0)["action"], ACTION[:, :1])


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (lambda p: np.save(p, STATE), "a.npy", r"one array has no names: .*np\.load\('.*a\.npy'\)"),
        (lambda p: p.write_bytes(b"\x80\x04}q\x00."), "a.pkl", "pickles can run code, so they are not read"),
        (lambda p: zipped(store(p.parent / "x"), p.with_suffix(".zip")).rename(p), "a.pt", None),
        (lambda p: p.write_bytes(b"x"), "a.tar", "unpack it, and give the folder"),
        (lambda p: p.write_bytes(b"x"), "a.bin", "write it anew, see 'Recordings of your own'"),
    ],
)
def test_other_files_say_what_to_do(
    tmp_path: Path, make: Callable[[Path], Any], name: str, message: str | None
) -> None:
    make(tmp_path / name)
    if message is None:
        assert_whole(tmp_path / name, [5, 12])
    else:
        assert re.search(message, problem(tmp_path / name))
