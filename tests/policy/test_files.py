"""The one atomic write: a file or a folder has its name when it is complete, and is what it was before otherwise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.files import atomic, complete_file, temporary_name, write_directory


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.mp4"
    for text in ("one", "two"):
        with atomic(path) as temporary:
            assert (temporary.suffix, temporary.parent) == (".mp4", path.parent)
            temporary.write_text(text)

    def fail() -> None:
        with atomic(path) as temporary:
            temporary.write_text("three")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["a.mp4"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "run"
    write_directory(path, lambda folder: (folder / "old").touch())
    write_directory(path, lambda folder: (folder / "new").touch())

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(FlowleapError, match="No space left"):
        write_directory(path, full)
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["run", "run/new"]


def test_a_job_finds_its_name_again(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    assert temporary_name(path, "job") == temporary_name(path, "job") != temporary_name(path, "other")
    assert temporary_name(path) != temporary_name(path)


def test_what_cannot_be_written_names_the_option(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(FlowleapError, match="cannot write save="),
        complete_file(tmp_path / "file" / "x", "save"),
    ):
        pass


def test_the_core_needs_no_torch() -> None:
    code = "import sys, flowleap.policy.core.files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
