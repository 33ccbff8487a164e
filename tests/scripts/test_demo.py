"""The demo in miniature, and the arithmetic and bookkeeping of the benchmark."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flowleap.scripts.cli import main as cli
from flowleap.scripts.cli.run import compose
from flowleap.scripts.studies import benchmark, benchmark_tables


def test_demo_in_miniature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Collect, train, eval, export, eval of the export: the folder holds what the page shows."""
    pytest.importorskip("metaworld")
    out = tmp_path / "demo"
    words = [f"out={out}", "demonstrations=2", "train_steps=20", "batch_size=16", "episodes=2"]
    assert cli.main(["demo", *words]) == 0
    for name in (
        "README.md",
        "results.json",
        "training.png",
        "chunks.png",
        "export/policy.onnx",
        "data.zarr",
    ):
        assert (out / name).exists(), name
    results = json.loads((out / "results.json").read_text())
    assert results["torch"]["success"]["n"] == results["export"]["success"]["n"] == 2
    assert results["torch"]["nfe"] == 1
    page = (out / "README.md").read_text()
    assert "| export | 1 |" in page
    assert ".mp4" in page or "No video" in page  # the pictures depend on a GL backend, the scores do not
    (out / ".flowleap-demo").unlink()
    capsys.readouterr()
    assert cli.main(["demo", *words]) == 1  # a folder that is no demo's is never replaced
    assert "choose another one" in capsys.readouterr().err


def test_demo_without_the_extras(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The slalom needs the core alone; the missing video names its extra."""
    for loaded in [m for m in sys.modules if m.split(".")[0] == "imageio"]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, "imageio", None)
    words = [
        "task=probe/slalom",
        f"out={tmp_path}/demo",
        "demonstrations=2",
        "train_steps=20",
        "batch_size=16",
    ]
    assert cli.main(["demo", *words, "episodes=2"]) == 0
    assert "is not installed: pip install 'flowleap[video]'" in capsys.readouterr().out
    page = (tmp_path / "demo" / "README.md").read_text()
    assert "No video: it needs `pip install 'flowleap[video]'`" in page
    config = (tmp_path / "demo" / "run" / "config.yaml").read_text()
    assert "max_frequency: 30" in config


def evaluation(objective: str, nfe: int, seed: int, rewards: list[float]) -> dict[str, Any]:
    rows = [
        {"seed": i, "max_reward": r, "success": r > 0.9, "outcomes": {"open": r > 0.6}}
        for i, r in enumerate(rewards)
    ]
    summary = {"latency_ms": {"p50": 1.0}, "modes": {"entropy_share": 0.5 + seed}, "outcomes": {"open": {}}}
    return {
        "objective": objective,
        "nfe": nfe,
        "seed": seed,
        "train_minutes": 1.0,
        "train_steps": 10,
        "gradient_norm": None,
        "summary": summary,
        "rows": rows,
    }


def test_benchmark_arithmetic() -> None:
    evaluations = [
        evaluation("isd", 1, 0, [1.0, 0.5]),
        evaluation("isd", 1, 1, [0.8, 0.7]),
        evaluation("regression", 1, 0, [0.5, 0.1]),
        evaluation("regression", 1, 1, [0.3, 0.3]),
    ]
    isd, regression = benchmark_tables.aggregate(evaluations, 2, "max_reward")
    assert isd["per_seed"] == pytest.approx([0.75, 0.75])
    assert isd["seed_sd"] == pytest.approx(0.0)
    assert isd["success"]["count"] == 1
    assert isd["success"]["n"] == 4
    assert (isd["outcomes"]["open"]["count"], isd["outcomes"]["open"]["n"]) == (3, 4)
    assert regression["mean_max_reward"] == pytest.approx(0.3)
    assert isd["score"] == pytest.approx(0.75)
    assert isd["entropy_share"] == pytest.approx(1.0)
    by_success, _ = benchmark_tables.aggregate(evaluations, 2, "success")
    assert by_success["score"] == pytest.approx(0.25)
    assert by_success["interval"] == pytest.approx(by_success["success"]["interval"])
    (difference,) = benchmark_tables.differences(evaluations, "max_reward")
    assert difference["mean"] == pytest.approx(0.45)
    low, high = difference["interval"]  # training seeds are resampled as well
    assert low < 0.4 < 0.5 < high
    (one,) = benchmark_tables.differences(evaluations[::2], "max_reward")
    assert one["interval"] == pytest.approx([0.4, 0.5])  # paired by evaluation seed: +0.5 and +0.4


def test_benchmark_repeats_nothing_that_is_finished(tmp_path: Path) -> None:
    data, run = tmp_path / "demos.zarr", tmp_path / "runs" / "regression_seed0"
    assert cli.main(["collect", "task=probe/slalom", "episodes=2", "n_envs=1", f"out={data}"]) == 0
    run.parent.mkdir()
    (run.parent / benchmark.STEP_COST).write_text('{"regression": 0.01}')  # of an earlier part of it
    words = [
        "task=probe/slalom",
        f"dataset={data}",
        f"out={run.parent}",
        f"results={tmp_path}/results",
        "objectives=[regression]",
        "budget=[steps,time]",
        "seeds=[0]",
        "episodes=1",
        'train="trainer.steps=2 trainer.warmup_steps=1 backbone.width=16 trainer.eval_every=2 eval.episodes=1"',
    ]
    assert cli.main(["benchmark", *words]) == 0
    first = (run / benchmark.TIMING).stat().st_mtime_ns
    assert cli.main(["benchmark", *words]) == 0
    assert (run / benchmark.TIMING).stat().st_mtime_ns == first
    result = json.loads((tmp_path / "results" / "probe_slalom.json").read_text())
    for table in ("table", "table_equal_time"):
        assert [(row["objective"], row["nfe"]) for row in result[table]] == [("regression", 1)]
        assert result[table][0]["train_steps"] == [2]
    assert [point["step"] for point in result["runs"][0]["curve"]] == [2]
    assert "| regression | 1 |" in (tmp_path / "results" / "probe_slalom.md").read_text()
    assert (tmp_path / "results" / "probe_slalom.png").stat().st_size > 1000


def test_a_cheaper_objective_gets_more_steps_in_equal_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds, asked = {"isd": 0.02, "regression": 0.005}, []

    def train(verb: str, *words: str) -> float:
        given = dict(word.split("=", 1) for word in words)
        assert (verb, given["trainer.eval_every"]) == ("train", "0")  # the time of evaluations is not counted
        asked.append(given["objective"])
        return 5.0 + seconds[given["objective"]] * int(given["trainer.stop_at"])

    monkeypatch.setattr(benchmark, "run_flowleap", train)
    words = ["task=probe/slalom", "dataset=x", f"out={tmp_path}", "seeds=[0,1]", "budget=[steps,time]"]
    words += ["objectives=[isd,regression]", 'train="trainer.steps=1000 trainer.eval_every=100"']
    cfg = compose("benchmark", words)
    rows = benchmark._rows(cfg, cfg.objectives)
    steps = {(row.budget, row.objective): int(row.train[-1].split("=")[1]) for row in rows if row.seed == 1}
    assert steps["time", "isd"] == 1000
    assert steps["time", "regression"] == 4000
    assert sorted(asked) == ["isd", "isd", "regression", "regression"]  # once for all seeds


SLEEPERS = """
import signal, sys
from flowleap.scripts.cli import main as cli
from flowleap.scripts.studies import benchmark
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
child = "import os, time; open(f'child{os.getpid()}', 'w').close(); time.sleep(600)"
benchmark.COMMAND = (sys.executable, "-c", child)
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_end_of_a_benchmark_ends_its_trainings(tmp_path: Path, number: int, code: int) -> None:
    words = ["task=probe/slalom", "dataset=x", "out=runs", "parallel=2", "objectives=[isd]", "seeds=[0,1,2]"]
    command = [sys.executable, "-c", SLEEPERS, "benchmark", *words]
    process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True)
    while len(children := list(tmp_path.glob("child*"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=300) == code
    for file in children:
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.name.removeprefix("child")), 0)
    assert set(tmp_path.glob("child*")) == set(children)
