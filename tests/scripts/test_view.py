"""`flowleap view`: recordings hold what the episode holds, read back with Rerun's own reader."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowleap.datasets.formats.zarr_store import EpisodeWriter
from flowleap.policy.core.spec import ObsKey, Spec
from flowleap.scripts.cli import main as cli

ODD = "left arm [rad]"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "reach.zarr"
    columns = {ODD: ObsKey((2, 2)), "top": ObsKey((16, 20, 3), "uint8", "rgb")}
    extra = {"reward": ObsKey(())}
    with EpisodeWriter(path, Spec(columns, 3, control_hz=10.0), extra=extra) as writer:
        for seed, length in enumerate((4, 6)):
            rng = np.random.default_rng(seed)
            image = np.full((length, 16, 20, 3), 40 * seed + 100, np.uint8)
            image[:, :, :, 0] += np.arange(length, dtype=np.uint8)[:, None, None]
            writer.add(
                {
                    ODD: rng.normal(size=(length, 2, 2)),
                    "top": image,
                    "reward": np.arange(length, dtype=np.float32),
                    "action": rng.normal(size=(length, 3)).astype(np.float32),
                }
            )
    return path


def recorded(file: Path) -> dict[str, dict[str, list[Any]]]:
    """Entity -> column -> the values of its rows, in order."""
    chunk = pytest.importorskip("rerun.chunk", reason="needs flowleap[viewer]")
    found: dict[str, dict[str, list[Any]]] = {}
    for part in chunk.RrdReader(str(file)).stream().to_chunks():
        if part.is_static:
            continue
        entity = found.setdefault(part.entity_path, {})
        batch = part.to_record_batch()
        for name, values in zip(batch.schema.names, batch.columns, strict=True):
            if name == "time":
                values = values.cast("int64")  # nanoseconds
            if name != "log_time":
                entity.setdefault(name, []).extend(values.to_pylist())
    return found


def column(entity: dict[str, list[Any]], ending: str) -> list[Any]:
    (name,) = [name for name in entity if name.endswith(ending)]
    return entity[name]


def test_a_recording_holds_the_episode(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rerun", reason="needs flowleap[viewer]")
    from PIL import Image

    from flowleap.datasets.formats.zarr_store import EpisodeStore

    out = tmp_path / "new" / "one.rrd"
    assert cli.main(["view", f"dataset={store}", "episode=1", f"save={out}"]) == 0
    assert f"{out}: episode 1, 6 frames of 4 columns" in capsys.readouterr().out
    assert [p.name for p in out.parent.iterdir()] == ["one.rrd"]
    episode = EpisodeStore(store).episode(1)
    found = recorded(out)
    for path, key in (
        ("/action", "action"),
        (r"/observation/left\ arm\ \[rad\]", ODD),
        ("/extra/reward", "reward"),
    ):
        np.testing.assert_allclose(column(found[path], "Scalars:scalars"), episode[key].reshape(6, -1))
        assert found[path]["frame"] == list(range(6))
        np.testing.assert_allclose(np.array(found[path]["time"]) / 1e9, np.arange(6) / 10)
    camera = found["/observation/top"]
    order = np.argsort(camera["frame"])
    blobs = [column(camera, "blob")[i][0] for i in order]
    assert len(blobs) == 6
    for blob, image in zip(blobs, episode["top"], strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(bytes(blob))))
        np.testing.assert_allclose(pixels, image, atol=3)


def test_wrong_wishes_are_one_line(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rerun", reason="needs flowleap[viewer]")
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "file").write_text("")
    for words, message in (
        ([], "there is no display for the viewer: add save=episode.rrd"),
        (["episode=2", f"save={tmp_path}/a.rrd"], "has episodes 0 to 1, not 2"),
        (["episode=-1", f"save={tmp_path}/a.rrd"], "has episodes 0 to 1, not -1"),
        (["save=a.mp4"], "ends in .rrd"),
        ([f"save={tmp_path}/file/a.rrd"], "cannot write save="),
    ):
        assert cli.main(["view", f"dataset={store}", *words]) == 1
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert message in lines[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "reach.zarr"]


def test_a_missing_package_names_its_extra(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    assert cli.main(["view", f"dataset={store}", "save=a.rrd"]) == 1
    assert "pip install 'flowleap[viewer]'" in capsys.readouterr().err
