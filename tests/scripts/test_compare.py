"""`flowleap compare`: words, tables, the sequential test on finished results and live, and what is refused."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results import write_evaluation

from flowleap.envs.actors import LoadedActor
from flowleap.envs.registry import make_task
from flowleap.envs.rollout import rollout
from flowleap.envs.sequential import Evidence, collect_evidence
from flowleap.envs.side_by_side import Duel, side_by_side
from flowleap.policy.core.errors import UsageError
from flowleap.policy.policy import Policy
from flowleap.scripts.cli import main as cli
from flowleap.scripts.cli.run import compose
from flowleap.scripts.cli.words import labelled, overrides

TASK = "probe/slalom"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def evaluated(name: str, rate: float, seed: int = 0, n: int = 100, **more: Any) -> None:
    successes = (np.random.default_rng(seed).random(n) < rate).tolist()
    write_evaluation(Path("runs") / name / "eval" / "x.json", successes, **more)


def compared(*words: str) -> dict[str, Any]:
    assert cli.main(["compare", *words, "out=c.json"]) == 0
    result: dict[str, Any] = json.loads(Path("c.json").read_text())
    return result


def fails(capsys: pytest.CaptureFixture[str], *words: str, code: int = 1) -> str:
    assert cli.main(["compare", *words]) == code
    assert not Path("runs/compare").exists()
    return capsys.readouterr().err.strip().splitlines()[-1]


# Words


def test_words_are_policies_unless_they_are_options() -> None:
    Path("runs/lr=3").mkdir(parents=True)
    words = ["runs/a", "b=runs/b,c [1]", "runs/lr=3", "alpha=0.01", "task=probe/slalom", "it's ${x}"]
    cfg = compose("compare", overrides("compare", words))
    assert list(cfg.policies) == ["runs/a", "b=runs/b,c [1]", "runs/lr=3", "it's ${x}"]
    assert (cfg.alpha, cfg.task.name) == (0.01, "probe/slalom")
    assert labelled("runs/lr=3") == ("runs/lr=3", "runs/lr=3")
    labels = ["isd=none.json", "seeds=runs/x"]
    assert list(compose("compare", overrides("compare", labels)).policies) == labels
    assert labelled("b=runs/b=2") == ("b", "runs/b=2")


def test_a_mistyped_option_is_no_policy(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'sequential'?" in fails(capsys, "runs/a", "runs/b", "sequental=true", code=2)


def test_download_still_takes_one_word() -> None:
    assert overrides("download", ["pusht", "out=x"]) == ["name=pusht", "out=x"]
    with pytest.raises(UsageError, match="one name at a time"):
        overrides("download", ["pusht", "other"])


# Finished results


def test_two_policies_on_the_same_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    evaluated("a", 0.9, nfe=1)
    evaluated("b", 0.5, nfe=10)
    result = compared("isd=runs/a", "ddpm=runs/b")
    out = capsys.readouterr().out
    (table,) = result["tables"]
    (pair,) = table["pairs"]
    assert (pair["a"], pair["b"], pair["test"], pair["different"]) == ("isd", "ddpm", "exact McNemar", True)
    assert [row["letters"] for row in table["policies"]] == ["a", "b"]
    assert result["conditions"] == {"NFE": [1, 10]}
    assert "NFE: 1 (isd), 10 (ddpm)" in out
    assert "not the methods" in out
    assert f"from {result['power']['detectable']:.2f} and higher" in out
    assert compared(*shlex.split(result["command"])[2:])["tables"] == result["tables"]  # repeats itself


def test_the_order_of_two_policies_does_not_matter() -> None:
    evaluated("a", 0.9)
    evaluated("b", 0.7, seed=1, first_seed=7)
    assert compared("runs/a", "runs/b")["tables"] == compared("runs/b", "runs/a")["tables"]


def test_scores_stand_beside_success() -> None:
    for name, low in (("a", 0.6), ("b", 0.2)):
        scores = np.random.default_rng(0).uniform(low, 1, 40)
        write_evaluation(
            Path("runs") / name / "eval" / "x.json",
            (scores > 0.95).tolist(),
            scores.tolist(),
            task="pusht/state",
        )
    result = compared("runs/a", "runs/b")
    assert [table["metric"] for table in result["tables"]] == ["success", "max_reward"]
    assert result["tables"][1]["pairs"][0]["test"] == "paired bootstrap"
    result = compared("runs/a", "runs/b", "metric=sum_reward", "sequential=true", "bounds=[0,2]")
    assert [table["metric"] for table in result["tables"]] == ["sum_reward"]
    assert result["sequential"]["stopped_after"] <= 40


def test_several_policies_and_training_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        evaluated(f"isd_{seed}", 0.9, seed)
        evaluated(f"ddpm_{seed}", 0.88, seed + 10)
    evaluated("bc", 0.3, 20)
    result = compared("isd=runs/isd_*", "ddpm=runs/ddpm_*/eval/x.json", "runs/bc")
    out = capsys.readouterr().out
    (table,) = result["tables"]
    letters = {row["label"]: row["letters"] for row in table["policies"]}
    assert set(letters) == {"isd", "ddpm", "runs/bc"}
    assert letters["isd"] == letters["ddpm"] == "a"
    assert letters["runs/bc"] == "b"
    assert "no independent evidence" in out
    assert "3 of isd, 3 of ddpm, 1 of runs/bc" in out
    assert all(pair["p_holm"] >= pair["p_value"] for pair in table["pairs"])
    assert len(result["files"]["isd"]) == 3


def test_the_sequential_test_on_finished_results(capsys: pytest.CaptureFixture[str]) -> None:
    evaluated("a", 0.95, n=200)
    evaluated("b", 0.5, seed=1, n=200)
    found = compared("runs/a", "runs/b", "sequential=true")["sequential"]
    assert (
        found["evidence"][found["stopped_after"] - 1]
        >= 20
        > max(found["evidence"][: found["stopped_after"] - 1])
    )
    assert "decided after" in capsys.readouterr().out
    worse = compared("runs/b", "runs/a", "sequential=true")["sequential"]
    assert worse["stopped_after"] is None
    assert worse["futile_after"] == found["stopped_after"]
    assert "the evidence is for runs/a" in worse["verdict"]
    either = compared("runs/b", "runs/a", "sequential=true", "alternative=two-sided")["sequential"]
    assert either["verdict"].startswith("runs/a is better")


def test_what_cannot_be_compared(capsys: pytest.CaptureFixture[str]) -> None:
    evaluated("a", 0.9)
    evaluated("far", 0.9, first_seed=0)
    evaluated("pusht", 0.9, task="pusht/state")
    evaluated("dp3", 0.9, protocol="dp3")
    Path("cut.json").write_text(Path("runs/a/eval/x.json").read_text()[:500])
    assert "needs two policies" in fails(capsys, "runs/a", code=2)
    assert "task" in fails(capsys, "runs/a", "runs/pusht")
    assert "protocol" in fails(capsys, "runs/a", "runs/dp3")
    assert "cut.json cannot be read" in fails(capsys, "runs/a", "cut.json")
    assert "no results at 'runs/none'" in fails(capsys, "runs/a", "runs/none")
    assert "no metric" in fails(capsys, "runs/a", "runs/far", "metric=coverage")
    assert "same seeds" in fails(capsys, "runs/a", "runs/far", "sequential=true")
    assert "two policies" in fails(capsys, "runs/a", "runs/far", "runs/dp3", "sequential=true", code=2)
    assert "alternative" in fails(capsys, "runs/a", "runs/far", "alternative=less", code=2)
    assert "alpha" in fails(capsys, "runs/a", "runs/far", "alpha=2")
    words = ("runs/a", "runs/far", "live=true", "bounds=[1]", "metric=max_reward")
    assert "runs/a" in fails(capsys, *words)


# Live


def around(obs: dict[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
    """Pass all posts on the right."""
    y = obs["position"][0, -1, 1]
    goal = obs["goal"][0, -1]
    ahead = np.array([[goal[0] if y > 0.32 else 0.12, min(y + 0.03 * (i + 1), goal[1])] for i in range(4)])
    return ahead[None].astype(np.float32)


def idle(obs: dict[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
    return np.repeat(obs["position"][:, -1:], 4, axis=1).astype(np.float32)


def as_loaded(act: Any) -> LoadedActor:
    spec = make_task(TASK).spec.with_window(2, 8, 4)
    return LoadedActor(act, act, 4, 0, False, spec, 1, lambda key: None, Path(), {}, None)


def evidence(duel: Duel) -> Evidence:
    return collect_evidence(*duel.values("success"), None, 0.05, "greater")


@pytest.mark.parametrize("turned", [False, True])
def test_side_by_side_stops_once_it_is_decided(turned: bool) -> None:
    actors = [as_loaded(around), as_loaded(idle)][:: -1 if turned else 1]
    seen = []
    task = make_task(TASK)
    duel = side_by_side(
        [(task, actor) for actor in actors],
        range(50, 150),
        3,
        1,
        evidence,
        lambda done, found: seen.append((done, found.decided)),
    )
    found = evidence(duel)
    assert seen == [(3, False), (6, False), (9, True)]
    assert (found.futile_after if turned else found.stopped_after) in (7, 8, 9)
    assert [e.seed for e in duel.first] == [e.seed for e in duel.second] == list(range(50, 59))
    whole = rollout(task, actors[0].act, actors[0].spec, range(50, 59)).episodes
    assert duel.first == whole  # blocks change no outcome


def test_ctrl_c_keeps_the_blocks_that_both_finished() -> None:
    calls = []

    def interrupted(obs: dict[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
        calls.append(1)
        if len(calls) > 30:
            raise KeyboardInterrupt
        return around(obs, noise)

    both = [(make_task(TASK), as_loaded(act)) for act in (idle, interrupted)]
    duel = side_by_side(both, range(50, 90), 2, 1, evidence, lambda done, found: None)
    assert duel.interrupted
    assert len(duel.first) == len(duel.second) > 0


def test_live_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        spec = make_task(TASK).spec.with_window(2, 8, 4)
        parts = {"objective": {"name": "isd"}, "backbone": {"name": "mlp", "width": 16, "depth": 1}}
        policy = Policy(spec, {**parts, "encoder": {"name": "lowdim"}})
        rng = np.random.default_rng(0)
        keys = {key: obs.shape for key, obs in spec.observations.items()} | {"action": (2,)}
        policy.normalizer.fit(
            {k: rng.normal(size=(9, *shape)).astype(np.float32) for k, shape in keys.items()}
        )
        policy.save(Path(name), info={"task": {"name": TASK, "kwargs": {}}})
    result = compared("one=a", "other=b", "live=true", "max_episodes=5", "block=2")
    assert result["sequential"]["episodes"] == 5
    assert result["sequential"]["verdict"].startswith("undecided after 5 episodes")
    assert [row["seed"] for row in result["policies"]["other"]["rows"]] == list(range(100000, 100005))
    assert "undecided after 5 episodes" in capsys.readouterr().out
    assert "metric=coverage" in fails(capsys, "one=a", "other=b", "live=true", "metric=coverage", code=2)
    assert "max_episodes" in fails(capsys, "one=a", "other=b", "live=true", "max_episodes=0")
    assert "seed" in fails(capsys, "one=a", "other=b", "live=true", "seed=-3")


def test_calibration_runs_in_small(capsys: pytest.CaptureFixture[str]) -> None:
    result = compared("calibrate=true", "simulations=100")
    assert {"false_alarms", "decisions", "type_one", "coverage"} <= set(result)
    assert all(0 <= row["rate"] <= 0.2 for row in result["false_alarms"])
    assert all(0.6 <= row["coverage"] <= 1 for row in result["coverage"])
    assert "coverage of Tango" in capsys.readouterr().out
