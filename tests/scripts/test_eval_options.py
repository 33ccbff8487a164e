"""`flowleap eval` with protocols, sweeps and perturbations, and `flowleap robustness`, on a tiny policy of slalom."""

from __future__ import annotations

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from flowleap.datasets.formats.zarr_writer import EpisodeWriter
from flowleap.envs.actors import load_actor
from flowleap.envs.registry import make_task
from flowleap.envs.statistics import wilson
from flowleap.policy.core.errors import FlowleapError
from flowleap.scripts.cli import main as cli
from flowleap.scripts.cli.run import compose
from flowleap.scripts.studies import benchmark

EXPORT = Path(__file__).parent.parent / "data" / "v0.1" / "export_nfe1"
KEYS = ("position", "velocity", "goal")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints of a policy that has hardly seen anything."""
    folder, rng = tmp_path_factory.mktemp("eval"), np.random.default_rng(0)
    with EpisodeWriter(folder / "data.zarr", make_task("probe/slalom").spec, {}) as writer:
        for _ in range(2):
            # Near the start, and drawn aside, where no post is.
            near = {key: rng.normal((0.0, -0.42), 0.03, (30, 2)).astype(np.float32) for key in KEYS}
            writer.add(near | {"action": rng.normal((0.1, -0.42), 0.01, (30, 2)).astype(np.float32)})
    words = ["task=probe/slalom", f"dataset={folder / 'data.zarr'}", f"run_dir={folder / 'run'}"]
    words += ["backbone.width=16", "backbone.depth=1", "horizon=8", "n_action_steps=4"]
    trainer = {
        "steps": 30,
        "checkpoint_every": 10,
        "keep_checkpoints": 3,
        "batch_size": 16,
        "warmup_steps": 1,
    }
    trainer |= {"device": "cpu", "progress": "false", "threads": 1}
    assert cli.main(["train", *words, *(f"trainer.{key}={value}" for key, value in trainer.items())]) == 0
    return folder / "run"


def evaluate(run_dir: Path, out: Path, *words: str) -> dict:
    fixed = [f"checkpoint={run_dir}", "episodes=2", "n_envs=1", "videos=0", f"out={out}"]
    assert cli.main(["eval", *fixed, *words]) == 0
    return json.loads(out.read_text())


def test_a_sweep_is_every_combination_and_equals_single_evaluations(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("steps=[1,2]", "noise_seed=[0,7]", "n_action_steps=[3]", "checkpoint_steps=all")
    found = evaluate(run_dir, tmp_path / "sweep.json", *words)
    rows = found["evaluations"]
    cases = [
        (r["options"]["checkpoint_steps"], r["options"]["steps"], r["options"]["noise_seed"]) for r in rows
    ]
    assert cases == [(c, s, n) for c in (10, 20, 30) for s in (1, 2) for n in (0, 7)]
    assert found["command"].startswith("flowleap eval ")
    for row in rows:
        assert row["nfe"] == row["options"]["steps"]
        assert row["spec"]["n_action_steps"] == 3
        assert row["noise_seed"] == row["options"]["noise_seed"]
        assert row["actor"]["training"]["step"] == row["options"]["checkpoint_steps"]
        assert row["protocol"]["name"] == "flowleap"
    printed = capsys.readouterr().out
    assert "12/12: checkpoint_steps=30 steps=2 n_action_steps=3 noise_seed=7" in printed
    assert "probe/slalom, 2 episodes each, protocol flowleap" in printed
    one = evaluate(run_dir, tmp_path / "one.json", "steps=2", "noise_seed=7", "n_action_steps=3")
    assert one["rows"] == rows[-1]["rows"]  # the last checkpoint is that of step 30
    other = evaluate(run_dir, tmp_path / "other.json", "steps=2", "n_action_steps=3")
    assert other["rows"] == rows[-2]["rows"] != one["rows"]


def test_perturbed_evaluations_say_so(run_dir: Path, tmp_path: Path) -> None:
    plain = evaluate(run_dir, tmp_path / "plain.json")
    assert plain["perturbation"] is None
    noisy = [evaluate(run_dir, tmp_path / f"{i}.json", "obs_noise=0.3", "drop=0.5") for i in range(2)]
    assert noisy[0]["perturbation"] == {"obs_noise": 0.3, "drop": 0.5}
    assert noisy[0]["rows"] == noisy[1]["rows"] != plain["rows"]
    assert {"jump", "interior", "acceleration", "jerk", "clipped"} == set(plain["rows"][0]["motion"])
    assert plain["summary"]["motion"]["ratio"] > 0


def test_a_warm_start_changes_all_but_the_first_chunk_and_needs_a_checkpoint(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cold, plain, warm = evaluate(run_dir, tmp_path / "sweep.json", "execute=4", "warm_start=[0,0.15]")[
        "evaluations"
    ] + [evaluate(run_dir, tmp_path / "warm.json", "warm_start=0.15")]
    assert cold["rows"] == evaluate(run_dir, tmp_path / "cold.json")["rows"] != plain["rows"]
    assert plain["rows"] == warm["rows"]
    assert warm["continuity"]["warm_start"] == 0.15
    capsys.readouterr()
    assert cli.main(["eval", f"checkpoint={EXPORT}", "warm_start=0.15"]) == 1
    assert "warm_start needs a checkpoint" in capsys.readouterr().err


def test_an_export_knows_the_ranges_of_its_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    export = shutil.copytree(EXPORT, tmp_path / "export")
    manifest = json.loads((export / "export.json").read_text())
    assert load_actor(export).range_of("goal") is None  # written by 0.1
    manifest["ranges"] = {"goal": [[0.5, 4.0], [0.0, 1.0]]}
    (export / "export.json").write_text(json.dumps(manifest))
    known = load_actor(export).range_of("goal")
    assert known is not None
    np.testing.assert_array_equal(known, [[0.5, 4.0], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["protocol=dp3"], r"protocol=dp3 is for metaworld/\*, adroit/door, not for probe/slalom"),
        (["protocol=diffusionpolicy"], "did you mean 'diffusion_policy'"),
        (["checkpoint_steps=15"], "no checkpoint of step 15; it has those of 10, 20, 30"),
        (["steps=[]"], r"steps=\[\] leaves nothing to evaluate"),
        (["drop=1.5"], r"eval.drop must be a number in \[0, 1\]"),
        (["noise_seed=-1"], "noise_seed must be a whole number"),
        (["episodes=0"], "episodes must be a whole number"),
        (["obs_nois=0.1"], "did you mean 'obs_noise'"),
    ],
)
def test_mistakes_are_one_line(
    run_dir: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["eval", f"checkpoint={run_dir}", "n_envs=1", *words]) != 0
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert re.search(message, error), error


def test_a_published_protocol_allows_no_other_conditions(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are refused before an environment is made; here with the policy of another task, so that none is needed."""
    task = "task=pusht/state"
    cases = {
        "episodes=10": "allows no episodes=10: it says episodes=50",
        "seed=3": "allows no seed=3: it says seed=100000",
        "drop=0.1": "allows no drop=0.1",
        "delay=2": "allows no delay=2",
    }
    for word, message in cases.items():
        assert cli.main(["eval", f"checkpoint={run_dir}", task, "protocol=diffusion_policy", word]) == 1
        assert message in capsys.readouterr().err
    words = ["task=metaworld/push-v3", "protocol=dp3", "+task.kwargs.max_steps=500"]
    assert cli.main(["eval", f"checkpoint={run_dir}", *words]) == 1
    assert "allows no task.kwargs.max_steps=500: its episodes have 200 steps" in capsys.readouterr().err


def test_robustness_draws_a_curve_each(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "robust.json"
    strengths = ["strengths.drop=[0.9,0]", "strengths.mass=[1,2]"]
    words = [f"checkpoint={run_dir}", "what=[drop,mass]", *strengths, "episodes=2", "n_envs=1", f"out={out}"]
    assert cli.main(["robustness", *words]) == 0
    found = json.loads(out.read_text())
    assert [e["options"] for e in found["evaluations"]] == [
        {},
        {"drop": 0.9},
        {"mass": 2},
    ]  # what changes nothing: once
    assert {kind: [p["strength"] for p in curve] for kind, curve in found["curves"].items()} == {
        "drop": [0, 0.9],
        "mass": [1, 2],
    }
    for curve in found["curves"].values():
        assert all(a["strength"] < b["strength"] for a, b in pairwise(curve))
        assert all(p["interval"] == list(wilson(p["success"]["count"], 2)) for p in curve)
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert cli.main(["robustness", f"checkpoint={run_dir}", "what=[frictoin]"]) == 2
    assert "did you mean 'friction'" in capsys.readouterr().err


def test_a_benchmark_refuses_results_of_two_protocols(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = [
        "task=pusht/keypoints",
        "dataset=none",
        f"out={tmp_path}",
        f"results={tmp_path}",
        "objectives=[isd]",
    ]
    row = benchmark.Row("isd", 0, (1,), (), tmp_path, "steps", None)
    names = iter(("flowleap", "diffusion_policy"))
    monkeypatch.setattr(benchmark, "_rows", lambda cfg, names: [row, row] if names else [])
    record = {"objective": "isd", "seed": 0, "budget": "steps"}
    monkeypatch.setattr(benchmark, "_run", lambda cfg, row: [{**record, "protocol": {"name": next(names)}}])
    with pytest.raises(
        FlowleapError, match="protocols diffusion_policy and flowleap do not belong into one table"
    ):
        benchmark.main(compose("benchmark", words))
    with pytest.raises(FlowleapError, match="allows no episodes=20"):
        benchmark.main(compose("benchmark", [*words, "protocol=diffusion_policy", "episodes=20"]))
