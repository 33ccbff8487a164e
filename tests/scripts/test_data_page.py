"""The page of `flowleap inspect html=...`: what it says, that nothing of a dataset acts on it, how it opens."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import zarr
from browser import CHROMIUM, Browser

from flowleap.datasets.dataset import open_dataset
from flowleap.datasets.quality import charts
from flowleap.datasets.quality.checks import Checks
from flowleap.datasets.quality.profile import Profile
from flowleap.scripts.cli import main as cli

EVIL = '"><img src=x onerror=alert(1)><script>alert(2)<'
ENDS = np.cumsum([40, 47, 54, 61, 68])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with every kind of trouble, whose names try to be HTML."""
    path = tmp_path / "<b>bold</b>.zarr".replace("/", "_")
    group = zarr.create_group(path, zarr_format=2)
    rng = np.random.default_rng(0)
    t = np.concatenate([np.arange(n) / 10 for n in np.diff(ENDS, prepend=0)])
    q = np.stack([np.sin(t + k) + 0.01 * np.arange(len(t)) for k in range(8)], axis=1).astype(np.float32)
    q[:, 3], q[5, 5], q[100, 6] = 0, np.nan, 5e4
    images = rng.integers(0, 256, (len(t), 20, 24, 3)).astype(np.float32)
    images[ENDS[1] : ENDS[2]] = images[ENDS[1]]
    group.create_array(f"data/{EVIL}", data=q)
    group.create_array(f"data/camera {EVIL}", data=images)
    group.create_array("data/timestamp", data=t)
    group.create_array(
        "data/action", data=np.clip(np.stack([np.sin(t), np.cos(t)], 1), -2, 0.5).astype(np.float32)
    )
    group.create_array("meta/episode_ends", data=ENDS)
    group.attrs["note"] = "</pre><script>alert(3)</script>"
    return path


class Tags(HTMLParser):
    """Collects tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page(store: Path, out: Path) -> str:
    assert cli.main(["inspect", f"dataset='{store}'", f"html='{out}'"]) == 0
    return out.read_text(encoding="utf-8")


def test_the_page_tells_problems_first_and_runs_nothing_of_the_dataset(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parsed = Tags(page(store, tmp_path / "deep" / "report.html"))
    assert "written: " in capsys.readouterr().out
    names = {tag for tag, _ in parsed.tags}
    assert not names & {"script", "iframe", "object"}
    assert not [a for _, attrs in parsed.tags for a in attrs if a.startswith("on")]
    links = [attrs.get(k) or "" for _, attrs in parsed.tags for k in ("src", "href") if k in attrs]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert {f"#{attrs['id']}" for _, attrs in parsed.tags if "id" in attrs} >= {
        x for x in links if x[0] == "#"
    }
    (policy,) = [a["content"] for tag, a in parsed.tags if tag == "meta" and "http-equiv" in a]
    assert policy is not None
    assert policy.startswith("default-src 'none'")

    text = parsed.text
    for part in (
        EVIL,
        "alert(3)",
        "has 1 NaN or infinite numbers in 1 episodes",
        "drop=[0]",
        "not observed: a time",
        "training refuses them",
        "is constant in dimensions 3",
        "action dimension 1 is clipped: 0.5",
        "dimension 6: 99 % of the frames lie in",
        "shows one and the same image in 1 of 5 episodes: episode 2",
        "each with what to do about it",
        "10 Hz by the time stamps",
        "What the network sees",
        "270",
    ):
        assert part in text, part
    assert text.index("is clipped") < text.index("What the network sees") < text.index("numbers a frame")
    images = [attrs for tag, attrs in parsed.tags if tag == "img"]
    assert len(images) == 3 * 6
    assert all((image["src"] or "").startswith("data:image/jpeg;base64,") for image in images)


def test_good_data_have_a_page_that_says_so(pusht_human: Path, tmp_path: Path) -> None:
    source = open_dataset(pusht_human)
    checks = Checks(source)
    profile = Profile(source, checks, (2, 16, 8), image_episodes=2)
    (wrap,) = checks.findings  # gym-pusht records the block's angle modulo 2 pi
    assert wrap.problem.startswith(
        "'state' dimension 4 is an angle that wraps: it jumps by 2 pi 91 times, in 91 of 206"
    )
    assert profile.findings == []
    assert profile.spec is not None
    assert list(profile.spec.observations) == ["keypoint", "n_contacts", "state"]
    window = profile.window(profile.median)
    assert {key: value.shape for key, value in window.items()} == {
        "keypoint": (2, 18),
        "n_contacts": (2, 1),
        "state": (2, 5),
        "action": (16, 2),
    }
    assert all(np.abs(value).max() <= 1 + 1e-5 for value in window.values())
    middle = int(checks.lengths[profile.median]) // 2
    action = profile.columns["action"]
    raw = source.episode(profile.median, ["action"])["action"][middle : middle + 16]
    expected = 2 * (raw - action.low) / (action.high - action.low) - 1
    np.testing.assert_allclose(window["action"], expected, atol=1e-5)
    assert profile.padded() == (pytest.approx(206 / 25650), pytest.approx(15 * 206 / 25650))


def test_bad_places_for_a_page_are_refused_before_the_dataset_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.html").mkdir()
    (tmp_path / "file").write_text("")
    for name, message in (("report", "ends in .html"), ("x.html", "is a folder")):
        assert cli.main(["inspect", "dataset=none.zarr", f"html={tmp_path / name}"]) == 1
        assert message in capsys.readouterr().err


def test_a_page_that_cannot_be_written_leaves_nothing(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["inspect", f"dataset='{store}'", f"html={tmp_path}/file/x.html"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "cannot write html=" in line
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([store.name, "file"])


def test_charts_are_the_pages_and_leave_gaps() -> None:
    values = np.array([0.0, 1.0, np.nan, 2.0, 3.0, np.inf, 1.0])
    svg = charts.lines(np.arange(7), [values], (0, 3), "s & <t>", 'a "b"')
    assert svg.startswith("<svg")
    (line,) = re.findall(r'<path d="(M[^"]*)"[^>]*stroke: var\(--c0\)', svg)
    assert line.count("M") == 3
    assert len(re.findall(r"<use[^>]*var\(--c0\)", svg)) == 1
    assert "s &amp; &lt;t&gt;" in svg
    assert 'aria-label="a &quot;b&quot;"' in svg
    assert not re.search(r"#abc0|<metadata|<script|<!DOCTYPE", svg, re.IGNORECASE)
    assert set(re.findall(r'href="(.)', svg)) <= {"#"}
    assert "var(--bar)" in charts.histogram(np.array([1, 0, 2]), 0, 3, "x", "y")
    assert "var(--c1)" in charts.dots([np.zeros(3), np.ones(3)], (-1, 1), "x", "y")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_opens_in_a_browser(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    page(store, out)
    with Browser(tmp_path / "profile") as browser:
        for width, theme in ((1280, "light"), (390, "dark")):
            browser.open(out, width, 900, theme)
            widths = browser.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
            assert widths == [width, width], "the page scrolls sideways"
            assert (
                browser.evaluate("Promise.all([...document.images].map(i => i.decode())).then(a => a.length)")
                == 18
            )
            background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", background))) < 384) == (theme == "dark")
        assert not browser.complaints
        assert {url.partition(":")[0] for url in browser.requests} <= {"file", "data"}
        assert {url for url in browser.requests if url.startswith("file:")} == {out.as_uri()}
