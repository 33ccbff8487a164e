"""`flowleap report` and `flowleap eval dataset=...` as they are typed: from training to a page that opens."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from omegaconf import OmegaConf

from flowleap.datasets.dataset import open_dataset
from flowleap.datasets.formats.zarr_writer import EpisodeWriter
from flowleap.policy.core.spec import ObsKey, Spec
from flowleap.policy.policy import Policy
from flowleap.scripts.cli import main as cli
from flowleap.scripts.cli.again import command_of
from flowleap.scripts.cli.run import compose
from flowleap.scripts.common import plain
from flowleap.scripts.export import dataset_observations

TINY = ["backbone.width=16", "backbone.depth=1", "trainer.batch_size=8", "trainer.device=cpu"]
TINY += ["trainer.progress=false", "trainer.log_every=1", "trainer.steps=2"]


def run(*words: str) -> None:
    assert cli.main(list(words)) == 0


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert cli.main(list(words)) in (1, 2)
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("error: ")
    return line


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of six episodes whose columns go by other names, and a run without the last two."""
    place = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    spec = Spec({"state": ObsKey((3,)), "cmd": ObsKey((2,))}, action_dim=2, control_hz=10.0)
    with EpisodeWriter(place / "own.zarr", spec, {}) as writer:
        for _ in range(6):
            columns = {k: rng.normal(size=(20, n)).astype(np.float32) for k, n in (("state", 3), ("cmd", 2))}
            writer.add({**columns, "action": rng.normal(size=(20, 2)).astype(np.float32)})
    named = ["rename={joints:state}", "keys=[joints]", "action=cmd", "drop='4:'"]
    run(
        "train",
        f"dataset={place}/own.zarr",
        f"run_dir={place}/run",
        *named,
        "horizon=4",
        "n_action_steps=2",
        *TINY,
    )
    return place


def test_offline_reads_as_training_did_and_takes_what_was_held_out(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("eval", f"checkpoint={own}/run", f"dataset={own}/own.zarr", "offline.noises=8")
    text = capsys.readouterr().out
    assert "episodes of its dataset that the policy was not trained on" in text
    assert "a low error does not mean success" in text
    results = json.loads((own / "run/eval/offline_own_nfe1.json").read_text())
    assert (own / "run/eval/offline_own_nfe1.png").is_file()
    offline = results["offline"]
    assert {part["episode"] for part in offline["worst_episodes"]} == {"episode 4", "episode 5"}
    assert offline["frames"] == 2 * 19
    assert offline["noises"] == 8
    out = f"out={tmp_path}/some.json"
    run("eval", f"checkpoint={own}/run", f"dataset={own}/own.zarr", "offline.episodes=[3,4]", out, "steps=2")
    some = json.loads((tmp_path / "some.json").read_text())["offline"]
    assert "trained on 1 of these 2 episodes" in some["data"]
    assert some["nfe"] == 2
    run("eval", f"checkpoint={own}/run", f"dataset={own}/own.zarr", "offline.episodes='0:3'", out)
    assert "the very episodes that the policy was trained on" in capsys.readouterr().out


def test_offline_mistakes_get_one_line(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = Spec({"jointz": ObsKey((3,))}, action_dim=2)
    with EpisodeWriter(tmp_path / "other.zarr", spec, {}) as writer:
        writer.add({"jointz": np.zeros((4, 3), np.float32), "action": np.zeros((4, 2), np.float32)})
    checkpoint = f"checkpoint={own}/run"
    assert "joint" in fails(capsys, "eval", checkpoint, f"dataset={tmp_path}/other.zarr")
    assert "nowhere.zarr" in fails(capsys, "eval", checkpoint, f"dataset={tmp_path}/nowhere.zarr")
    own_data = f"dataset={own}/own.zarr"
    assert "offline.noises" in fails(capsys, "eval", checkpoint, own_data, "offline.noises=0")
    assert "0 to 5" in fails(capsys, "eval", checkpoint, own_data, "offline.episodes=[9]")
    assert "no lists of values" in fails(capsys, "eval", checkpoint, own_data, "steps=[1,2]")


def test_an_export_is_compared_on_the_data_as_training_read_them(own: Path) -> None:
    policy = Policy.load(own / "run")
    observations = dataset_observations(None, policy)
    assert observations is not None
    with open_dataset(own / "own.zarr") as source:
        np.testing.assert_array_equal(observations["joints"][:, -1], source.columns(["state"])["state"])


def test_a_run_without_simulator_has_its_page(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("report", f"{own}/run")
    assert "has not been evaluated in simulation" in capsys.readouterr().out
    text = (own / "run/report.html").read_text()
    assert "rename={joints:state}" in text
    assert "loss over training" in text


def test_the_command_of_a_run_composes_to_its_configuration(own: Path) -> None:
    config = plain(OmegaConf.load(own / "run/config.yaml"))
    verb, *words = shlex.split(command_of("train", config))[1:]
    assert plain(compose(verb, words)) == config
    odd = plain(compose("train", ["task=gym/Reach-v0", "task.kwargs.keys={a.b:c,d:null}", "dataset=a b,c"]))
    verb, *words = shlex.split(command_of("train", {**odd, "of_another_version": 1}))[1:]
    assert plain(compose(verb, words)) == odd


def test_report_mistakes_get_one_line(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert "'runs' is required" in fails(capsys, "report")
    assert "did you mean 'run'" in fails(capsys, "report", f"{own}/rnu")
    assert "ends in .html" in fails(capsys, "report", f"{own}/run", f"out={tmp_path}/page")
    assert "cannot write out=" in fails(capsys, "report", f"{own}/run", f"out={tmp_path}/file/x.html")
    assert "videos must be" in fails(capsys, "report", f"{own}/run", "videos=-1")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


@pytest.fixture(scope="module")
def slalom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on probe/slalom, evaluated on three seeds, which two steps of training cannot succeed on."""
    place = tmp_path_factory.mktemp("slalom, of 1")
    run("collect", "task=probe/slalom", "episodes=2", f"out={place}/data.zarr")
    run("train", "task=probe/slalom", f"dataset={place}/data.zarr", f"run_dir={place}/run", *TINY)
    for steps in (1, 2):
        run("eval", f"checkpoint={place}/run", f"steps={steps}", "episodes=3", "n_envs=1", "videos=0")
    return place / "run"


def test_failures_are_run_again_as_they_were_scored(
    slalom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("imageio_ffmpeg")
    run("report", str(slalom), f"out={tmp_path}/page.html", "videos=1")
    said, text = capsys.readouterr().out, (tmp_path / "page.html").read_text()
    if "no OpenGL backend renders here" in said:
        pytest.skip("needs OpenGL")
    assert "1 shown; 3 of 3 episodes failed" in said
    assert text.count("<video") == 1
    assert "otherwise" not in text  # the outcome is the scored one


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_opens_in_a_browser(slalom: Path, own: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    run("report", str(slalom), f"{own}/run", f"out={out}", "videos=1")
    with Browser(tmp_path / "profile") as browser:
        for width, theme in ((1280, "light"), (390, "dark")):
            browser.open(out, width, 844, theme)
            widths = browser.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
            assert widths == [width, width], "the page scrolls sideways"
            playable = (
                "Promise.all([...document.querySelectorAll('video')].map(v => new Promise("
                "r => {v.onerror = () => r(-1); v.onloadedmetadata = () => r(v.duration); v.load()})))"
            )
            assert all(seconds > 0 for seconds in browser.evaluate(playable))
        assert not browser.complaints
        assert {url.partition(":")[0] for url in browser.requests} <= {"file", "data"}
        assert {url for url in browser.requests if url.startswith("file:")} == {out.as_uri()}
