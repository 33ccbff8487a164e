"""The two-dimensional toy: it trains, measures and draws; its measures mean what they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flowleap.scripts.cli import main as cli
from flowleap.scripts.studies import toy


def test_measures_of_a_toy_sample() -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[-1.0, 0.0], [1.0, 0.0]])
    truth = toy._sample(centres, 2000, rng)
    same = toy.describe(toy._sample(centres, 2000, rng), truth, centres)
    assert same["sliced_wasserstein"] < 0.05
    assert same["entropy_share"] > 0.99
    assert same["on_a_mode"] > 0.98
    collapsed = toy.describe(np.zeros_like(truth), truth, centres)
    assert collapsed["on_a_mode"] == 0.0
    assert collapsed["sliced_wasserstein"] > 0.4
    one = toy.describe(np.tile(centres[:1], (2000, 1)), truth, centres)
    assert one["entropy_share"] == 0.0


def test_toy_command(tmp_path: Path) -> None:
    words = ["density=two", "objective=mip", "steps=30", "samples=100", f"out={tmp_path}"]
    assert cli.main(["toy", *words]) == 0
    result = json.loads((tmp_path / "two_mip.json").read_text())
    assert [row["nfe"] for row in result["table"]] == [2]  # the only NFE that the objective supports
    assert result["command"] == f"flowleap toy {' '.join(words)}"
    assert (tmp_path / "two_mip.png").stat().st_size > 1000


def test_unknown_density_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["toy", "density=spiral"]) == 1
    assert "density=spiral is unknown; there are corners, two, ring" in capsys.readouterr().err
