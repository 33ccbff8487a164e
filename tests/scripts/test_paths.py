"""Paths on the command line: whatever characters they hold, quoted or not, on every verb and in stored runs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from flowleap.policy.policy import Policy
from flowleap.scripts.cli import main as cli
from flowleap.scripts.cli import options
from flowleap.scripts.cli.paths import PATHS, as_it_stands
from flowleap.scripts.cli.run import compose
from flowleap.scripts.cli.verbs import VERBS

ODD = "a,b [c]=(d) 'e' \"f\" ${oc.env:HOME} $x #{g} \\h é日本:1%&+~"
NAMES = [
    *(
        "my data",
        "lift (v2)",
        "a=b",
        "a,b",
        "x[1]",
        "démo_日本",
        'q"uote',
        "it's",
        "dollar$x",
        "${oc.env:HOME}",
    ),
    *(
        "a:b",
        "100%",
        "hash#1",
        "back\\slash",
        "end\\",
        "{brace}",
        "a\\${b}",
        "a\\\\${b",
        "5",
        "true",
        "1e3",
        "choice(a,b)",
    ),
    *("C:\\data\\d.npz", " space ", "a;b|c", "*?", "tilde~", "[/b]", ODD),
]
TINY = [
    "trainer.steps=2",
    "trainer.device=cpu",
    "trainer.progress=false",
    "trainer.threads=1",
    "trainer.warmup_steps=1",
]
TINY += ["backbone.width=8", "backbone.depth=1", "trainer.batch_size=4", "horizon=4", "n_action_steps=2"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_npz(path: Path) -> None:
    """Two episodes of a small recording."""
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {key: rng.normal(size=(30, n)).astype(np.float32) for key, n in (("state", 3), ("action", 2))}
    with path.open("wb") as file:
        np.savez(file, episode_ends=np.array([10, 30]), **columns)  # type: ignore[arg-type]


@pytest.mark.parametrize("verb", VERBS)
def test_every_path_of_every_verb_is_taken_as_it_stands(verb: str) -> None:
    keys = PATHS & options.load_options(verb).values.keys()
    config = compose(verb, [f"{key}={ODD}" for key in keys])
    for key in keys:
        assert config[key] == ODD, key
        assert compose(verb, [f"{key}=null"])[key] is None


def test_only_options_are_marked_as_paths() -> None:
    known = {key for verb in VERBS for key in options.load_options(verb).values}
    known |= options.load_options("train", ["encoder=vit", "objective=distillation"]).values.keys()
    assert compose("train", ["encoder=vit", f"encoder.weights={ODD}"]).encoder.weights == ODD
    assert known >= PATHS


@pytest.mark.parametrize("name", NAMES)
def test_paths_are_read_unquoted_and_quoted(name: str) -> None:
    assert compose("inspect", [f"dataset={name}"]).dataset == name
    if not name.endswith("\\") and '"' not in name:
        assert compose("inspect", [f'dataset="{name}"']).dataset == name
    stored = compose("train", [f"run_dir={name}", f"dataset={name}"])
    assert (stored.run_dir, stored.dataset) == (name, name)


def test_plain_paths_and_other_options_are_left_alone() -> None:
    words = ["dataset=data/a.zarr", "keys=[a,b]", "dataset=null", "resume=runs/x/checkpoints/step_00000010"]
    assert [as_it_stands(word, multirun) for word in words for multirun in (False, True)] == [
        word for word in words for _ in range(2)
    ]


def test_the_home_folder_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert compose("train", ["run_dir=~/runs/a"]).run_dir == os.path.join(str(tmp_path), "runs/a")
    assert compose("train", ["run_dir=runs/~"]).run_dir == "runs/~"


@pytest.mark.parametrize("name", ["a,b [c]=(d) é", "${oc.env:HOME}", "it's {x} $y #1 \\", "[red]x[/b]"])
def test_a_run_with_an_odd_path_trains_resumes_and_exports(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_npz(tmp_path / name / "d.npz")
    run = Path(name) / f"run {name}"
    assert cli.main(["train", f"dataset={name}/d.npz", f"run_dir={run}", *TINY]) == 0
    assert f"{run} | obs state[3]" in capsys.readouterr().out
    stored = OmegaConf.load(run / "config.yaml")
    assert (stored.dataset, stored.run_dir) == (str(tmp_path / name / "d.npz"), str(run))
    assert cli.main(["train", f"resume={run}", "trainer.steps=3"]) == 0
    assert OmegaConf.load(run / "config.yaml").dataset == str(tmp_path / name / "d.npz")
    assert cli.main(["inspect", f"dataset={name}/d.npz", f"html={name}/page.html"]) == 0
    assert (tmp_path / name / "page.html").is_file()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    capsys.readouterr()
    out = Path("..") / name / "export"
    words = [f"checkpoint=../{run}", f"out={out}", f"results=../{name}/e.json"]
    assert cli.main(["export", *words]) == 0
    assert "30 dataset observations" in capsys.readouterr().out
    assert (out / "export.json").is_file()
    assert (tmp_path / name / "e.json").is_file()


def test_in_a_sweep_commas_part_paths_unless_they_are_quoted(tmp_path: Path) -> None:
    assert as_it_stands('dataset=x,"a,b",it\'s', multirun=True) == "dataset=x,'a,b','it\\'s'"
    for name in ("x.npz", "a,b.npz"):
        write_npz(tmp_path / name)
    words = ['dataset=x.npz,"a,b.npz"', "trainer.seed=0,1", 'run_dir="sweep, ${oc.env:HOME} [1]"']
    assert cli.main(["train", "-m", *words, *TINY]) == 0
    runs = sorted(path for path in (tmp_path / "sweep, ${oc.env:HOME} [1]").iterdir() if path.is_dir())
    assert [
        (Path(info["dataset"]).name, info["trainer"]["seed"]) for info in (Policy.load(r).info for r in runs)
    ] == [(name, seed) for name in ("x.npz", "a,b.npz") for seed in (0, 1)]
