"""The wheel holds what the tree holds, all of it under `flowleap`, and takes nobody else's name."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("policy", "envs", "datasets", "configs", "scripts")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Build the wheel from a copy of the tree, so that nothing stays behind there; return its file names."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("needs setuptools")
    copy, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--no-deps",
            "--no-build-isolation",
            "-q",
            "-w",
            str(out),
            str(copy),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    (file,) = out.glob("flowleap-*.whl")
    with zipfile.ZipFile(file) as archive:
        return archive.namelist()


def test_the_wheel_equals_the_tree(wheel: list[str]) -> None:
    # The one folder that has a name of its own, which lerobot is told.
    tree = {
        f"flowleap/{file.relative_to(ROOT).as_posix()}".replace("/policy/deploy/lerobot/", "/lerobot/")
        for folder in FOLDERS
        for pattern in ("*.py", "*.yaml", "*.html", "py.typed")
        for file in (ROOT / folder).rglob(pattern)
    }
    packed = {name for name in wheel if ".dist-info/" not in name}
    assert packed == tree, f"missing: {sorted(tree - packed)}, too much: {sorted(packed - tree)}"
    assert "flowleap/datasets/formats/zarr_store.py" in packed
    assert "flowleap/configs/list.yaml" in packed


def test_type_checkers_read_every_package(wheel: list[str]) -> None:
    """A namespace package has no marker for all of it: each folder with modules has its own `py.typed`."""
    folders = {name.rpartition("/")[0] for name in wheel if name.endswith(".py")}
    assert folders == {name.rpartition("/")[0] for name in wheel if name.endswith("/py.typed")}


def test_the_wheel_takes_no_name_but_flowleap(wheel: list[str]) -> None:
    top = {name.split("/")[0] for name in wheel if ".dist-info/" not in name}
    assert top == {"flowleap"}
    assert "flowleap/__init__.py" not in wheel
    assert "flowleap/datasets/__init__.py" not in wheel
    assert any(name.endswith("LICENSE") for name in wheel)


def test_another_package_called_datasets_wins_over_our_folder(tmp_path: Path) -> None:
    """Without an `__init__.py`, our folder gives way to any installed `datasets`, even at the root."""
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("name = 'someone else'")
    result = subprocess.run(
        [sys.executable, "-c", "import datasets; print(datasets.name)"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.strip() == "someone else", result.stderr
