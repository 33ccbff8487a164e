"""The page about runs: what it says of good folders, damaged ones and hostile ones, and that nothing of them acts."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from flowleap.datasets.offline import follow, predict_at, spread_frames
from flowleap.datasets.offline_summary import summarise
from flowleap.datasets.quality import charts
from flowleap.envs.registry import make_task
from flowleap.envs.report import episode_rows, summary
from flowleap.envs.rollout import Episode, Rollout
from flowleap.envs.run_report.failures import failures, gallery
from flowleap.envs.run_report.folder import read_run
from flowleap.envs.run_report.page import render
from flowleap.envs.run_report.results import Evaluation
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.files import write_results

EVIL = '"><img src=x onerror=alert(1)><script>alert(2)</script>\u202e' + "é" * 300


def results(
    out: Path,
    nfe: int = 1,
    step: int = 600,
    successes: int = 3,
    n: int = 10,
    task: str = "probe/slalom",
    **more,
) -> Path:
    """The results file of an evaluation with the first `successes` of `n` episodes successful."""
    episodes = [Episode(100000 + i, i < successes, float(i < successes), 1.0, 10) for i in range(n)]
    rollout = Rollout(episodes, np.geomspace(1e-3, 9e-3, 30).tolist(), 1.0, 2.0)
    actor = {"kind": "checkpoint", "weights": "ema", "training": {"step": step}, "path": "runs/x"}
    report = summary(rollout, make_task("probe/slalom")) | {"task": task}
    data = {"nfe": nfe, "summary": report, "seeds": {"first": 100000, "count": n}, "actor": actor}
    data |= {"config": {"checkpoint": "runs/x", "steps": nfe}, "rows": episode_rows(rollout)}
    return write_results(out, data | more)


def run_at(path: Path, step: int = 600) -> Path:
    """A folder as `flowleap train` leaves it, without weights."""
    checkpoint = path / "checkpoints" / f"step_{step:08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "policy.json").write_text("{}")
    (path / "config.yaml").write_text("objective:\n  name: isd\ntrainer:\n  steps: 600\nrun_dir: x\n")
    rows = [{"step": s, "loss": 1 / s, "grad_norm": 2.0, "fm": 0.1, "time": 0.0} for s in range(20, 620, 20)]
    rows += [{"step": s, "eval/score": s / 600, "eval/nfe": 1} for s in (200, 400, 600)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Page(HTMLParser):
    """Tags with attributes, text, and the rows of each table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.tables, self.cell = "", [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.cell = True

    def handle_data(self, data):
        self.text += data
        if self.cell:
            self.tables[-1][-1][-1] += data.strip()

    def handle_endtag(self, tag):
        self.cell = self.cell and tag not in ("td", "th")


def page(*runs, galleries=()) -> Page:
    return Page(render(runs, galleries, [["flowleap report x"] for _ in runs]))


def remedies(run) -> list[str]:
    return [problem.remedy for problem in run.problems]


def test_a_run_is_quoted_by_its_last_checkpoint_not_its_best(tmp_path):
    path = run_at(tmp_path / "mine")
    results(path / "eval/early.json", step=200, successes=10)
    results(path / "eval/many.json", nfe=4, successes=9)
    results(path / "eval/one.json", nfe=1, successes=3)
    results(path / "eval/late.json", nfe=1, successes=8, continuity={"continuity": "prefix", "delay": 2})
    run = read_run(path)
    assert run.problems == []
    assert run.headline.file.name == "one.json"
    parsed = page(run)
    assert "0.3 [0.108, 0.603]" in parsed.text
    assert "success, 3 of 10, NFE 1, step 600, protocol flowleap" in " ".join(parsed.text.split())
    head, *rows = parsed.tables[0]
    assert head == ["run", "NFE", "step", "successes", "success rate", "latency p50 / p95, ms", "conditions"]
    assert [row[1:4] for row in rows] == [
        ["1", "600", "3/10"],
        ["4", "600", "9/10"],
        ["1", "600", "8/10"],
        ["1", "200", "10/10"],
    ]
    assert rows[0][4] == "0.300 [0.108, 0.603]"
    assert [row[-1] for row in rows] == ["", "", "prefix, 2 steps late", ""]
    assert "probe/slalom, success at NFE 1, protocol flowleap" in parsed.text  # two checkpoints: a curve
    assert "score during training" in parsed.text
    labels = [attrs["aria-label"] for tag, attrs in parsed.tags if tag == "svg" and "aria-label" in attrs]
    assert {"loss over training", "grad_norm over training", "fm over training"} <= set(labels)
    assert any(label.startswith("latency of mine") for label in labels)


def test_two_protocols_never_share_a_table(tmp_path):
    path = run_at(tmp_path / "mine")
    results(path / "eval/own.json", protocol={"name": "flowleap", "published": False})
    results(path / "eval/old.json", nfe=2)  # names none: flowleap's own
    results(path / "eval/theirs.json", successes=5, protocol={"name": "dp3", "published": True})
    results(path / "eval/text.json", successes=5, protocol="dp3", nfe=2)
    results(path / "eval/other.json", successes=5, task="probe/other")
    parsed = page(read_run(path))
    scores = [table for table in parsed.tables if table[0][1] == "NFE"]
    assert [len(table) - 1 for table in scores] == [2, 1, 2]
    assert "probe/slalom, protocol dp3" in parsed.text
    assert "are not to be compared" in parsed.text


def test_a_sweep_and_an_export_are_read_too(tmp_path):
    path = run_at(tmp_path / "mine")
    one = json.loads(results(tmp_path / "one.json").read_text())
    two = json.loads(results(tmp_path / "two.json", nfe=2, perturbation={"noise": 0.1}).read_text())
    write_results(path / "eval/sweep.json", {"evaluations": [one, two]})
    actor = {"kind": "export", "threads": 1}
    results(path / "export_nfe1/eval/one.json", successes=9, actor=actor)
    run = read_run(path)
    assert [(e.nfe, e.conditions) for e in run.evaluations] == [
        (1, ()),
        (2, ("noise 0.1",)),
        (1, ("exported",)),
    ]
    assert run.headline.conditions == ()


def test_robustness_is_drawn(tmp_path):
    path = run_at(tmp_path / "mine")
    parts = [
        json.loads(results(tmp_path / "one.json", perturbation=p).read_text()) for p in (None, {EVIL: 0.1})
    ]
    points = [{"strength": s, "score": 0.3, "interval": [0.1, 0.6]} for s in (0.0, 0.1)]
    data = {"command": "flowleap robustness x", "evaluations": parts, "curves": {EVIL: points}}
    write_results(path / "eval/robustness.json", data)
    run = read_run(path)
    assert run.problems == []
    assert len(run.evaluations) == 2
    assert {e.data["command"] for e in run.evaluations} == {"flowleap robustness x"}
    assert run.headline.conditions == ()
    parsed = page(run)
    labels = [attrs.get("aria-label") or "" for tag, attrs in parsed.tags if tag == "svg"]
    assert sum(f", against {EVIL}" in label for label in labels) == 1
    del points[1]["score"]
    write_results(path / "eval/robustness.json", data)
    assert "robustness.json" in read_run(path).problems[0].text


def test_what_is_missing_or_damaged_is_named_and_the_rest_is_shown(tmp_path):
    path = run_at(tmp_path / "mine")
    assert remedies(read_run(path)) == [
        f"flowleap eval checkpoint={path}",
        f"flowleap eval checkpoint={path} dataset=PATH",
    ]
    good = results(path / "eval/good.json")
    text = good.read_text()
    (path / "eval/cut.json").write_text(text[: len(text) // 2])
    (path / "eval/list.json").write_text("[]")
    (path / "eval/other.json").write_text('{"nfe": 1}')
    (path / "eval/nan.json").write_text(text.replace('"p50": ', '"p50": NaN, "was": ', 1))
    (path / "eval/bytes.json").write_bytes(b"\xff\xfe\x00")
    (path / "config.yaml").write_text("a: [1, ")
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 620, "loss": NaN}\n{"step": 640, "lo')
    run = read_run(path)
    assert len(run.evaluations) == 1
    said = " ".join(problem.text for problem in run.problems)
    for part in (
        "cut.json is damaged",
        "list.json",
        "other.json",
        "nan.json",
        "bytes.json",
        "config.yaml",
        "line 35",
    ):
        assert part in said, part
    assert "NaN or infinite in 1 of 31 rows" in said
    parsed = page(run)
    assert "cut.json is damaged" in parsed.text
    assert "3/10" in parsed.text


def test_folders_that_are_no_runs_are_refused(tmp_path):
    run_at(tmp_path / "mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name, message in (
        ("mnie", "does not exist.*did you mean 'mine'"),
        ("file", "is a file"),
        ("empty", "is no run"),
        (".", "runs inside of it: mine"),
        ("mine/checkpoints/step_00000600", "is a checkpoint: name its run"),
    ):
        with pytest.raises(FlowleapError, match=message):
            read_run(tmp_path / name)


def test_hostile_names_stay_text(tmp_path):
    path = run_at(tmp_path / "<script>alert(5)<")
    (path / "config.yaml").write_text(json.dumps({"dataset": EVIL, "</pre><script>": EVIL}))
    results(
        path / "eval/one.json",
        task=EVIL,
        protocol={"name": EVIL},
        perturbation={EVIL: EVIL},
        config={"n_action_steps": EVIL},
    )
    results(path / "eval/two.json", task=EVIL, step=200)
    (path / "eval" / "<b>.json").write_text("{")
    other = run_at(tmp_path / "other")
    made = gallery(EVIL, read_run(path).headline, _filmed, 10.0, 1, 10**7)
    runs = [read_run(path), read_run(other)]
    text = render(runs, [made], [[EVIL], []])
    parsed = Page(text)
    names = {tag for tag, _ in parsed.tags}
    assert not names & {"script", "iframe", "object", "b-", "form"}
    assert not [a for _, attrs in parsed.tags for a in attrs if a.startswith("on")]
    links = [attrs.get(k) or "" for _, attrs in parsed.tags for k in ("src", "href", "poster") if k in attrs]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert parsed.text.count(EVIL) > 5
    ids = {f"#{attrs['id']}" for _, attrs in parsed.tags if "id" in attrs}
    assert {link for link in links if link.startswith("#")} <= ids
    (policy,) = [a["content"] for tag, a in parsed.tags if tag == "meta" and "http-equiv" in a]
    assert policy.startswith("default-src 'none'")
    for tag, attrs in parsed.tags:
        assert tag != "img" or attrs["alt"]
        assert tag != "video" or attrs["aria-label"]
    headings = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(headings)), "a level is left out"


def _filmed(seed: int) -> tuple[np.ndarray, Episode]:
    frames = np.random.default_rng(seed).integers(0, 255, (30, 64, 300, 3)).astype(np.uint8)
    return frames, Episode(seed, False, 0.0, 1.0, 29)


def test_several_runs_are_told_apart_and_their_differences_named(tmp_path):
    first, second = run_at(tmp_path / "a" / "run"), run_at(tmp_path / "b" / "run")
    (second / "config.yaml").write_text("objective:\n  name: meanflow\ntrainer:\n  steps: 600\nrun_dir: y\n")
    results(first / "eval/one.json", successes=3)
    runs = [read_run(first), read_run(second)]
    parsed = page(*runs)
    assert "2 runs" in parsed.text
    assert f"{second}: not evaluated" in " ".join(f"{t['label']}: {t['value']}" for t in _tiles(runs))
    differing = next(table for table in parsed.tables if table[0][0] == "option")
    assert differing == [["option", str(first), str(second)], ["objective.name", '"isd"', '"meanflow"']]


def _tiles(runs):
    from flowleap.envs.run_report.page import _tile

    return [_tile(str(run.path), run.headline) for run in runs]


@pytest.fixture
def failed(tmp_path) -> Evaluation:
    file = results(tmp_path / "one.json", successes=1, n=4)
    data = json.loads(file.read_text())
    data["rows"][2]["max_reward"] = -1.0
    return Evaluation.of(file, data)


def test_the_worst_failures_come_first(failed):
    assert [row["seed"] for row in failures(failed)] == [100002, 100001, 100003]


def test_failures_are_videos_while_there_is_room(failed):
    pytest.importorskip("imageio_ffmpeg")
    made = gallery("mine", failed, _filmed, 10.0, 2, 10**7)
    assert [bool(film.video) for film in made.films] == [True, True]
    assert made.films[0].video.startswith("data:video/mp4;base64,")
    assert made.note.startswith("3 of 4 episodes failed")
    assert "went otherwise than when it was scored (best reward -1)" in made.films[0].caption
    assert "otherwise" not in made.films[1].caption
    spent = 10**7 - made.left
    assert spent == sum(len(film.video) + len(film.still) + len(film.poster) for film in made.films)
    strips = gallery("mine", failed, _filmed, 10.0, 3, 2 * len(made.films[0].still) + 100)
    assert [bool(film.video) for film in strips.films] == [False, False]
    assert "no room for more" in strips.note


def test_without_a_renderer_the_note_says_why(failed, monkeypatch):
    def blind(seed):
        raise FlowleapError("no OpenGL backend renders here")

    made = gallery("mine", failed, blind, 10.0, 2, 10**7)
    assert made.films == []
    assert "No pictures: no OpenGL backend renders here" in made.note

    def unpacked(*args, **kwargs):
        raise FlowleapError("imageio is not installed: pip install 'flowleap[video]'")

    monkeypatch.setattr("flowleap.envs.run_report.failures.save_video", unpacked)
    made = gallery("mine", failed, _filmed, 10.0, 2, 10**7)
    assert [film.video for film in made.films] == ["", ""]
    assert made.note.count("Film strips in place of videos: imageio is not installed") == 1


def test_offline_results_have_their_section(tmp_path):
    from flowleap.datasets.dataset import Dataset
    from flowleap.policy.core.spec import ObsKey, Spec

    path = run_at(tmp_path / "mine")
    rng = np.random.default_rng(0)
    columns = {
        "s": rng.normal(size=(40, 1)).astype(np.float32),
        "action": rng.normal(size=(40, 2)).astype(np.float32),
    }
    source = Dataset.from_arrays(columns, [20, 40], Spec({"s": ObsKey((1,))}, action_dim=2))
    windows = source.windows(1, 4, 2)
    found = predict_at(lambda obs, noise: noise, windows, spread_frames(windows.episode_ends, 9), 8)
    made = summarise(found, windows, None, ["<i>one</i>", "two"])
    drawn = {"worst": made["worst_episodes"][0] | follow(lambda obs, noise: noise, windows, 0)}
    about = {"dataset": EVIL, "nfe": 1, "caution": "a low error does not mean success", "data": "of its own"}
    write_results(path / "eval/offline.json", {"offline": {**about, **made, "drawn": drawn}})
    run = read_run(path)
    assert remedies(run) == [f"flowleap eval checkpoint={path}"]
    parsed = page(run)
    assert "a low error does not mean success" in parsed.text
    assert "<i>one</i>" in parsed.text
    table = next(table for table in parsed.tables if table[0][0] == "dimension")
    assert len(table) == 3
    assert table[1][1] == f"{made['dimensions'][0]['policy']['mean']:.3g}"
    broken = json.loads((path / "eval/offline.json").read_text())
    del broken["offline"]["error"]
    (path / "eval/offline.json").write_text(json.dumps(broken))
    assert "offline.json holds no results" in read_run(path).problems[0].text


def test_curves_take_points_of_their_own() -> None:
    drawn = [charts.Curve([1, 2], [0.1, 0.2], [[0.0, 0.3], [0.1, 0.3]]), charts.Curve([5], [np.inf])]
    svg = charts.curves(drawn, "steps", "a & b")
    assert 'aria-label="a &amp; b"' in svg
    assert "var(--c0)" in svg
    assert "#abc0" not in svg
    assert "10" in charts.curves([charts.Curve([1, 2], [1e-3, 1e3])], "x", "y", log=True)
    assert charts.bins(np.array([1, 2]), np.array([0.1, 1, 10]), "ms", "l").startswith("<svg")
