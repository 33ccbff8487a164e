"""A policy that sees, from images in a store to an exported graph: uint8 all the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from flowleap.datasets.formats.zarr_store import EpisodeWriter
from flowleap.envs.registry import make_task
from flowleap.policy.core.spec import ObsKey, Spec
from flowleap.policy.policy import Policy
from flowleap.scripts.cli import main as cli

pytest.importorskip("gym_pusht")

TINY = [
    "task=pusht/pixels",
    "encoder=cnn",
    "encoder.channels=[8,8]",
    "encoder.features=8",
    "backbone.width=16",
    "backbone.depth=1",
    "trainer.batch_size=8",
    "trainer.warmup_steps=2",
    "trainer.log_every=2",
    "trainer.device=cpu",
    "trainer.progress=false",
]


def run(*words: str) -> None:
    assert cli.main(list(words)) == 0


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three short episodes of Push-T, the finger drawn about at random."""
    task = make_task("pusht/pixels")
    env, rng = task.make_env(), np.random.default_rng(0)
    path = tmp_path_factory.mktemp("images") / "pusht.zarr"
    with EpisodeWriter(path, task.spec) as writer:
        for seed in range(3):
            obs, _ = env.reset(seed=seed)
            frames = []
            for _ in range(12):
                action = rng.uniform(100, 400, 2).astype(np.float32)
                frames.append({**obs, "action": action})
                obs, *_ = env.step(action)
            writer.add({key: np.stack([frame[key] for frame in frames]) for key in frames[0]})
    return path


@pytest.fixture(scope="module")
def run_dir(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("images") / "run"
    run("train", f"dataset={dataset}", f"run_dir={out}", "trainer.steps=6", *TINY)
    return out


def test_disk_and_memory_any_number_of_threads_and_a_resumed_run_train_the_same(
    dataset: Path, run_dir: Path, tmp_path: Path
) -> None:
    where = [f"dataset={dataset}", f"run_dir={tmp_path}/run"]
    disk = ["image_cache_mb=0", "trainer.workers=0", "trainer.stop_at=3"]
    run("train", *where, *disk, "trainer.steps=6", *TINY)
    run("train", f"resume={tmp_path}/run", "trainer.stop_at=0", "trainer.workers=3")
    one, two = (Policy.load(path, "raw").state_dict() for path in (run_dir, tmp_path / "run"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_plan_says_where_the_images_are(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = [f"dataset={dataset}", f"run_dir={tmp_path}/run", "trainer.dry_run=true", *TINY]
    run("train", *plan)
    out = capsys.readouterr().out
    assert "1 MB uint8 in memory" in out
    assert "3 batch(es) of" in " ".join(out.replace("│", " ").split())
    run("train", *plan, "image_cache_mb=0")
    assert "1 MB uint8 on disk" in capsys.readouterr().out


def test_eval_and_export_agree(run_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from flowleap.policy.core.errors import FlowleapError
    from flowleap.policy.deploy.runtime import ExportedPolicy

    run("export", f"checkpoint={run_dir}", f"out={tmp_path}/export")
    manifest = json.loads((tmp_path / "export" / "export.json").read_text())
    assert manifest["parity"]["max_relative"] < 1e-4
    assert manifest["parity"]["observations"] == "dataset"
    common = ["episodes=1", "videos=0", "n_envs=1"]
    run("eval", f"checkpoint={run_dir}", f"out={tmp_path}/one.json", *common)
    run("eval", f"checkpoint={tmp_path}/export", f"out={tmp_path}/two.json", *common)
    one, two = (json.loads((tmp_path / f"{name}.json").read_text())["rows"][0] for name in ("one", "two"))
    assert one["max_reward"] == pytest.approx(two["max_reward"], abs=0.05)
    exported = ExportedPolicy.load(tmp_path / "export")
    obs = {"image": np.zeros((1, 2, 96, 96, 3), np.uint8), "agent_pos": np.zeros((1, 2, 2), np.float32)}
    assert exported.act(obs).shape == (1, 8, 2)
    with pytest.raises(FlowleapError, match=r"'image'.*uint8"):
        exported.act({**obs, "image": obs["image"].astype(np.float32)})


def test_cameras_are_resized_in_training_evaluation_and_export(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the fly and in a conversion before: the same policy, which takes the simulator's 96 x 96 px."""
    view = ["resize=[32,32]", "crop=[80,80]"]
    lean = [*TINY, "trainer.steps=4", "encoder.frames=0"]
    run("train", f"dataset={dataset}", f"run_dir={tmp_path}/run", *view, *lean)
    assert "in all" in capsys.readouterr().out
    run("convert", f"source={dataset}", f"out={tmp_path}/small.zarr", *view)
    run("train", f"dataset={tmp_path}/small.zarr", f"run_dir={tmp_path}/two", *lean)
    one, two = (Policy.load(tmp_path / name, "raw") for name in ("run", "two"))
    assert one.spec.observations == two.spec.observations
    assert one.spec.observations["image"].shape == (32, 32, 3)
    assert one.spec.observations["image"].camera_shape == (96, 96, 3)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))

    run("export", f"checkpoint={tmp_path}/run", f"out={tmp_path}/export")
    manifest = json.loads((tmp_path / "export" / "export.json").read_text())
    assert manifest["parity"]["observations"] == "dataset"
    assert manifest["parity"]["max_relative"] < 1e-4
    common = ["episodes=1", "videos=0", "n_envs=1"]
    for name in ("run", "export"):
        run("eval", f"checkpoint={tmp_path}/{name}", f"out={tmp_path}/{name}.json", *common)
    rows = [json.loads((tmp_path / f"{name}.json").read_text())["rows"][0] for name in ("run", "export")]
    assert rows[0]["max_reward"] == pytest.approx(rows[1]["max_reward"], abs=0.05)
    run("train", f"resume={tmp_path}/run", "trainer.steps=6")
    off_centre = ["crop=[0,0,72,72]", "trainer.dry_run=true", *lean]
    assert cli.main(["train", f"dataset={dataset}", f"run_dir={tmp_path}/no", *off_centre]) == 1
    assert "data.mirror=false" in capsys.readouterr().err
    run("train", f"dataset={dataset}", f"run_dir={tmp_path}/no", *off_centre, "data.mirror=false")


def test_published_recordings_are_resized_under_their_own_name(tmp_path: Path) -> None:
    """Push-T's store calls the camera `img` and holds floats; the task calls it `image`."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 96, 96, 3)).astype(np.float32)
    group = zarr.open_group(tmp_path / "foreign.zarr", mode="w", zarr_format=2)
    state = rng.uniform(100, 400, (20, 5)).astype(np.float32)
    columns = {"img": images, "state": state, "action": state[:, :2], "keypoint": np.zeros((20, 9, 2), "f4")}
    for key, x in {**columns, "n_contacts": np.ones((20, 1), "f4")}.items():
        x[0] = 1
        group.create_array(f"data/{key}", data=x, chunks=x.shape)
    group.create_array("meta/episode_ends", data=np.array([20]))
    words = [f"dataset={tmp_path}/foreign.zarr", f"run_dir={tmp_path}/run", "resize={img:[48,48]}"]
    run("train", *words, *TINY, "trainer.steps=2")
    spec = Policy.load(tmp_path / "run").spec
    assert spec.observations["image"].shape == (48, 48, 3)
    assert spec.observations["image"].camera_shape == (96, 96, 3)


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    columns = {
        "points": rng.normal(size=(30, 512, 3)),
        "cam": rng.integers(0, 255, (30, 3, 32, 40), np.uint8),
    }
    columns |= {"state": rng.normal(size=(30, 3)), "action": rng.normal(size=(30, 2))}
    np.savez(tmp_path / "a.npz", **columns, episode_ends=np.array([30]))
    small = ["backbone.width=16", "trainer.steps=1", "trainer.batch_size=8", "trainer.progress=false"]
    run("train", f"dataset={tmp_path}/a.npz", f"run_dir={tmp_path}/run", *small, "trainer.device=cpu")
    out = " ".join(capsys.readouterr().out.split())
    assert (
        "not observed: points (512 x 3 numbers, which points=[NAME] reads as a cloud of points); cam (images"
        in out
    )
    assert list(Policy.load(tmp_path / "run").spec.observations) == ["state"]
    run("inspect", f"dataset={tmp_path}/a.npz", f"html={tmp_path}/a.html")
    out = capsys.readouterr().out
    assert "cam: [3, 32, 40] uint8, read as [32, 40, 3] (rgb)" in out
    assert "points (512 x 3 numbers" in out
    run("convert", f"source={tmp_path}/a.npz", f"out={tmp_path}/a.zarr", "keys=[-points]")
    stored = zarr.open_group(tmp_path / "a.zarr")["data/cam"]
    np.testing.assert_array_equal(stored, np.moveaxis(columns["cam"], 1, -1))  # type: ignore[arg-type]


def test_a_spec_that_calls_images_plain_numbers_is_pointed_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = Spec({"cam": ObsKey((3, 24, 32), "uint8"), "state": ObsKey((2,))}, 2)
    with EpisodeWriter(tmp_path / "a.zarr", spec) as writer:
        state = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
        images = np.random.default_rng(0).integers(0, 256, (20, 3, 24, 32), np.uint8)
        writer.add({"cam": images, "state": state, "action": state})
    small = ["backbone.width=16", "trainer.device=cpu", "trainer.dry_run=true"]
    run("train", f"dataset={tmp_path}/a.zarr", f"run_dir={tmp_path}/run", *small)
    words = "'cam': 3 x 24 x 32 numbers a frame, read as plain numbers: record images with"
    assert words in " ".join(capsys.readouterr().out.split())
    run("inspect", f"dataset={tmp_path}/a.zarr")
    assert words in capsys.readouterr().out
    run("train", f"dataset={tmp_path}/a.zarr", f"run_dir={tmp_path}/run", *small, "keys=[-cam]")
    assert "'cam'" not in capsys.readouterr().out


def test_mistakes_are_named(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "task=pusht/pixels", f"dataset={dataset}", f"run_dir={tmp_path}/run"]) == 1
    assert "choose encoder=cnn" in capsys.readouterr().err
    words = ["train", "task=pusht/pixels", f"dataset={dataset}", f"run_dir={tmp_path}/run", "encoder=cnn"]
    for word, message in (
        ("image_cache_mb=none", "image_cache_mb must be a whole number"),
        ("image_cache_mb=-1", "image_cache_mb must be a whole number"),
    ):
        assert cli.main([*words, word]) == 1
        assert message in capsys.readouterr().err
    assert cli.main([*words, "cameras=[corner2]"]) == 2  # only tasks of MetaWorld have them to choose
    assert "unknown option 'task.kwargs.cameras'" in capsys.readouterr().err
    state = ["train", "task=pusht/state", f"dataset={dataset}", f"run_dir={tmp_path}/run"]
    assert cli.main(state) == 1
    assert "block_position" in capsys.readouterr().err


def test_a_damaged_image_ends_training_with_one_line(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The threads that gather batches find it; no checkpoint is written, and nothing hangs."""
    copy = tmp_path / "damaged.zarr"
    shutil.copytree(dataset, copy)
    file = copy / "data" / "image" / "c" / "20" / "0" / "0" / "0"
    file.write_bytes(file.read_bytes()[:40])
    words = [f"dataset={copy}", f"run_dir={tmp_path}/run", "trainer.steps=40", "image_cache_mb=0", *TINY]
    assert cli.main(["train", *words, "mirror=false"]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"error: chunk {file} is truncated or damaged")
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run" / "checkpoints").exists()


def write_two_cameras(path: Path, size: int) -> None:
    """A store as `flowleap collect ... cameras=[corner2,gripperPOV]` records it, of random images."""
    task = make_task("metaworld/reach-v3", cameras=["corner2", "gripperPOV"], camera_size=size)
    rng = np.random.default_rng(0)
    with EpisodeWriter(path, task.spec) as writer:
        for _ in range(2):
            images = {
                key: rng.integers(0, 256, (9, size, size, 3), np.uint8) for key in ("corner2", "gripperPOV")
            }
            hand, action = (rng.normal(size=(9, 4)).astype(np.float32) for _ in range(2))
            writer.add({**images, "hand": hand, "action": np.clip(action, -1, 1)})


TWO = ["task=metaworld/reach-v3", *TINY[1:]]


@pytest.mark.parametrize("shared", ["true", "false"])
def test_two_cameras_train_and_keep_the_size_that_was_recorded(tmp_path: Path, shared: str) -> None:
    pytest.importorskip("metaworld")
    write_two_cameras(tmp_path / "two.zarr", 24)
    where = [f"dataset={tmp_path}/two.zarr", f"run_dir={tmp_path}/run", "trainer.steps=2"]
    run("train", *where, "cameras=[gripperPOV,corner2]", f"encoder.shared={shared}", *TWO)
    policy = Policy.load(tmp_path / "run")
    assert {key: obs.shape for key, obs in policy.spec.observations.items()} == {
        "gripperPOV": (24, 24, 3),
        "corner2": (24, 24, 3),
        "hand": (4,),
    }
    assert len(policy.encoder.towers) == (1 if shared == "true" else 2)  # type: ignore[arg-type]
    assert policy.spec.source["kwargs"]["camera_size"] == 24


def test_camera_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("metaworld")
    write_two_cameras(tmp_path / "two.zarr", 24)
    words = ["train", f"dataset={tmp_path}/two.zarr", "trainer.dry_run=true", *TWO]
    for more, message in (
        ([], "it was recorded with task.kwargs.cameras=[corner2,gripperPOV]"),
        (["cameras=[corner2,corner2]"], "cameras names 'corner2' twice"),
        (["cameras=corner3"], "needs column 'corner3'"),
        (["cameras=corner9"], "no camera 'corner9'"),
        (["cameras=[corner2]", "+task.kwargs.camera_size=32"], "observation 'corner2'"),
    ):
        assert cli.main([*words, *more]) == 1
        assert message in capsys.readouterr().err
    run(*words, "cameras=corner2")


def test_images_of_other_formats_are_for_conversion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("h5py")
    write_two_cameras(tmp_path / "two.zarr", 24)
    run("convert", f"source={tmp_path}/two.zarr", f"out={tmp_path}/two.hdf5")
    assert cli.main(["train", f"dataset={tmp_path}/two.hdf5", *TINY[1:], "trainer.dry_run=true"]) == 1
    error = capsys.readouterr().err
    assert "is read in place, without ['corner2', 'gripperPOV']" in error
    assert f"flowleap convert source={tmp_path}/two.hdf5" in error
