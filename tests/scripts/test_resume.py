"""Runs that go on: with the very data, from any folder and checkpoint; other data only when asked for by name."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from safetensors.torch import load_file

from flowleap.policy.checkpoint import read_manifest
from flowleap.policy.policy import Policy
from flowleap.scripts.cli import main as cli
from flowleap.scripts.cli.run import compose
from flowleap.scripts.resume import resumed

OLD = Path(__file__).resolve().parent.parent / "data" / "v0.1"
TINY = [
    "trainer.device=cpu",
    "trainer.progress=false",
    "trainer.threads=1",
    "trainer.warmup_steps=1",
    "backbone.width=8",
]
TINY += [
    "backbone.depth=1",
    "trainer.batch_size=8",
    "horizon=4",
    "n_action_steps=2",
    "trainer.checkpoint_every=2",
]
TINY += ["encoder.noise=0.01", "trainer.keep_checkpoints=9"]


def write_npz(path: Path, n: int = 40, scale: float = 1.0, first: int = 15, **names: str) -> None:
    """Two episodes of n frames in all; `names` are other names for the columns."""
    rng = np.random.default_rng(0)
    columns = {
        key: scale * rng.normal(size=(50, width))[:n]
        for key, width in (("state", 3), ("goal", 1), ("action", 2))
    }
    named = {names.get(key, key): x.astype(np.float32) for key, x in columns.items()}
    np.savez(path, episode_ends=np.array([first, n]), **named)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the dataset d.npz and `run`, 4 of 6 steps done, and `whole`, all of them at once."""
    folder = tmp_path_factory.mktemp("origin")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_npz(folder / "d.npz")
        for name, stop in (("run", 4), ("whole", 0)):
            words = [f"run_dir={name}", "dataset=d.npz", "trainer.steps=6", f"trainer.stop_at={stop}"]
            assert cli.main(["train", *words, *TINY]) == 0
    return folder


@pytest.fixture
def place(origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run in a new working directory; its dataset is where it was, and written anew."""
    shutil.copytree(origin / "run", tmp_path / "run", symlinks=True)
    write_npz(origin / "d.npz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def same_weights(a: Path, b: Path) -> bool:
    one, two = (load_file(run / "checkpoints" / "step_00000006" / "model.safetensors") for run in (a, b))
    return one.keys() == two.keys() and all(torch.equal(x, two[key]) for key, x in one.items())


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert cli.main(["train", *words]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_a_run_goes_on_from_another_folder_to_its_last_step(origin: Path, place: Path) -> None:
    stored = OmegaConf.load("run/config.yaml")
    assert (stored.dataset, stored.trainer.stop_at) == (str(origin / "d.npz"), 4)
    assert (
        cli.main(["train", "resume=run/", "resume_other_data=true"]) == 0
    )  # they are not, so this changes nothing
    assert same_weights(place / "run", origin / "whole")
    info = Policy.load("run").info
    assert (info["step"], info["dataset"]) == (6, str(origin / "d.npz"))
    assert info["data"] == Policy.load(origin / "run").info["data"]


@pytest.mark.parametrize(
    ("checkpoint", "begin"), [("last", 4), ("step_00000002", 2), ("step_00000004/", 4), ("", 4)]
)
def test_a_checkpoint_of_a_run_goes_on(origin: Path, place: Path, checkpoint: str, begin: int) -> None:
    rows = Path("run/metrics.jsonl")
    before = rows.read_text()
    words = [f"resume=run/checkpoints/{checkpoint}", "trainer.log_every=1"]
    assert cli.main(["train", *words]) == 0
    assert same_weights(place / "run", origin / "whole")
    steps = [int(line.split('"step": ')[1].split(",")[0]) for line in rows.read_text().splitlines()]
    assert steps[-(6 - begin) :] == list(range(begin + 1, 7))
    assert rows.read_text() != before


def test_a_copy_without_links_goes_on(origin: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Some programs copy what a link names, others leave the link out."""
    shutil.copytree("run", "copy", symlinks=False)
    shutil.rmtree("copy/checkpoints/last")
    line = refused(capsys, "resume=copy")
    assert "name one of its checkpoints: copy/checkpoints/step_00000004" in line
    shutil.copytree("run", "copy", symlinks=False, dirs_exist_ok=True)
    assert not Path("copy/checkpoints/last").is_symlink()
    assert cli.main(["train", "resume=copy"]) == 0
    assert same_weights(place / "copy", origin / "whole")
    assert Path("copy/checkpoints/last").is_symlink()


def test_the_weights_that_a_run_began_with_are_not_read_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # of the verb that ran last in this process
    stored = OmegaConf.load("run/config.yaml")
    stored.encoder.weights = "pretrained.pth"
    OmegaConf.save(stored, "run/config.yaml")
    assert resumed(compose("train", ["resume=run"])).cfg.encoder.weights is None


def test_a_finished_run_says_so(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "resume=run"]) == cli.main(["train", "resume=run"]) == 0
    said = capsys.readouterr().out
    assert (
        "step_00000006 has 6 steps of 6, nothing is left to do; `flowleap train resume=run trainer.steps=12`"
        in said
    )
    assert cli.main(["train", "resume=run", "trainer.steps=7"]) == 0
    assert Policy.load("run").info["step"] == 7


@pytest.mark.parametrize("new", ["other name.npz", "d.zarr", "d.hdf5"])
def test_the_same_data_may_be_elsewhere_and_in_another_format(
    origin: Path, place: Path, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if new.endswith("npz"):
        shutil.copy(origin / "d.npz", new)
    else:
        pytest.importorskip("h5py")
        assert cli.main(["convert", f"source={origin}/d.npz", f"out={new}"]) == 0
    (origin / "d.npz").unlink()
    line = refused(capsys, "resume=run")
    assert f"{origin}/d.npz' does not exist" in line
    assert "add dataset=PLACE" in line
    assert cli.main(["train", "resume=run", f"dataset={new}"]) == 0
    assert same_weights(place / "run", origin / "whole")
    assert OmegaConf.load("run/config.yaml").dataset == Policy.load("run").info["dataset"] == str(place / new)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"scale": 100.0}, "other numbers in 'action', 'goal', 'state'"),
        ({"n": 50}, "50 frames instead of 40"),
        ({"n": 20}, "20 frames instead of 40"),
        ({"first": 16}, "episodes of other lengths"),
    ],
)
def test_other_data_are_refused_unless_asked_for(
    origin: Path, place: Path, change: dict[str, float], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_npz(origin / "d.npz", **change)  # type: ignore[arg-type]
    line = refused(capsys, "resume=run")
    assert expected in line
    assert "dataset=PLACE, or train on with these: resume_other_data=true" in line
    normalizer = Policy.load("run").normalizer.state_dict()
    assert cli.main(["train", "resume=run", "resume_other_data=true"]) == 0
    policy = Policy.load("run")
    assert policy.info["data"]["frames"] == change.get("n", 40)
    assert all(torch.equal(x, normalizer[key]) for key, x in policy.normalizer.state_dict().items())
    assert cli.main(["train", "resume=run", "trainer.steps=7"]) == 0  # they are the run's data now


def test_other_columns_are_named(origin: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_npz(origin / "d.npz", goal="aim")
    line = refused(capsys, "resume=run")
    assert "no column 'goal' to observe, only " in line
    assert "add dataset=PLACE" in line
    rng = np.random.default_rng(1)
    write_npz(place / "more.npz")
    with np.load(place / "more.npz") as columns:
        np.savez(place / "more.npz", extra=rng.normal(size=(40, 2)), **columns)
    assert cli.main(["train", "resume=run", "dataset=more.npz"]) == 0  # what the run observes is all there
    assert same_weights(place / "run", origin / "whole")


def test_what_was_chosen_stays_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path / "d.npz")
    chosen = [
        "keys=[st*]",
        "episodes=[1]",
        "dataset=d.npz",
        "run_dir=run",
        "trainer.steps=4",
        "trainer.stop_at=2",
    ]
    assert cli.main(["train", *chosen, *TINY]) == 0
    for _ in range(2):
        policy = Policy.load("run")
        assert ([*policy.spec.observations], policy.info["data"]["frames"]) == (["state"], 25)
        assert [*policy.info["data"]["columns"]] == ["action", "state"]
        stored = OmegaConf.load("run/config.yaml")
        assert (stored["keys"], stored.episodes) == (["st*"], [1])
        cli.main(["train", "resume=run"])
    assert policy.info["step"] == 4
    assert cli.main(["export", "checkpoint=run"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resume=none"], "resume=none does not exist"),
        (["resume=run", "backbone.width=16"], "'backbone.width' cannot change when a run is resumed"),
        (["resume=run", "keys=[state]"], "'keys' cannot change when a run is resumed"),
        (["resume=run/checkpoints/step_00000003"], "step_00000003 does not exist"),
        (["resume=copy"], "can act but not resume"),
        (["resume=begun"], "the run has no checkpoint yet; start it again with run_dir=begun"),
    ],
)
def test_what_cannot_be_resumed(
    place: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("run/checkpoints/step_00000004", "copy")
    (place / "begun").mkdir()
    shutil.copy("run/config.yaml", "begun/config.yaml")
    assert message in refused(capsys, *words)


def test_a_run_without_digest_is_compared_by_its_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("run", "store.zarr"):
        shutil.copytree(OLD / name, tmp_path / name, symlinks=True)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["convert", "source=store.zarr", "out=less.zarr", "episodes=2"]) == 0
    line = refused(capsys, "resume=run", "dataset=less.zarr")
    assert "2 episodes instead of 3" in line
    assert "frames instead of 229" in line
    assert cli.main(["train", "resume=run", "trainer.threads=1"]) == 0
    manifest = read_manifest(tmp_path / "run" / "checkpoints" / "last")
    assert manifest["info"]["step"] == 12
    assert manifest["info"]["data"]["frames"] == 229
    assert OmegaConf.load("run/config.yaml").dataset == os.path.join(tmp_path, "store.zarr")
