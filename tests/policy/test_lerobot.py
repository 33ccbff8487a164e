"""The policy type `flowleap` of lerobot. What needs lerobot runs in an environment that has it, or is skipped."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowleap.lerobot import features, folder
from flowleap.lerobot.statistics import columns_of
from flowleap.policy import ObsKey, Policy, Spec
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.deploy.export import export
from flowleap.policy.normalizer import Normalizer
from flowleap.scripts.cli import main as cli
from flowleap.scripts.studies.lerobot_check import NAMES, served

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SPEC = Spec({"agent_pos": ObsKey((2,)), "keypoints": ObsKey((16,))}, 2, 2, 16, 8, 10.0)
CHECKS = re.findall(r"^@check\ndef (\w+)", (HERE / "lerobot_checks.py").read_text(), re.MULTILINE)


@functools.cache
def python_with_lerobot() -> str | None:
    """The interpreter that FLOWLEAP_LEROBOT_PYTHON names, or this one; None where lerobot cannot be imported."""
    python = os.environ.get("FLOWLEAP_LEROBOT_PYTHON", sys.executable)
    probe = "from importlib.util import find_spec as f; exit(not (f('lerobot') and f('flowleap.lerobot')))"
    try:
        found = subprocess.run([python, "-c", probe], capture_output=True, cwd=HERE).returncode == 0
    except OSError as error:
        pytest.fail(f"FLOWLEAP_LEROBOT_PYTHON={python}: {error}")
    return python if found else None


def untrained() -> Policy:
    """An untrained policy for Push-T."""
    torch.manual_seed(0)
    policy = Policy(SPEC, {"objective": "isd", "backbone": {"name": "mlp", "width": 32}, "encoder": "lowdim"})
    rng = np.random.default_rng(0)
    sizes = {"agent_pos": 2, "keypoints": 16, "action": 2}
    policy.normalizer.fit(
        {key: rng.uniform(100, 400, (500, n)).astype(np.float32) for key, n in sizes.items()}
    )
    return policy


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its export, with LeRobot's files."""
    policy, out = untrained(), tmp_path_factory.mktemp("lerobot") / "export"
    export(policy, out)
    folder.write_files(out, SPEC, NAMES)
    return out


@pytest.fixture(scope="module")
def outcomes(exported: Path) -> dict[str, str | None]:
    """What came of each check of lerobot_checks.py; skip where there is no lerobot."""
    python = python_with_lerobot()
    if python is None:
        pytest.skip(
            "needs lerobot, on Python 3.12 (FLOWLEAP_LEROBOT_PYTHON=PYTHON names an environment that has it)"
        )
    work = exported.parent
    shutil.copytree(ROOT / "examples" / "lerobot_policy_flowleap", work / "source")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    # `--python` and the version: the interpreter that installs is not the one that it is for.
    install += ["--ignore-requires-python", "--target", str(work / "site"), str(work / "source")]
    subprocess.run(install, check=True, capture_output=True)
    command = [python, str(HERE / "lerobot_checks.py"), str(work)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=work, check=False)
    lines = result.stdout.splitlines()
    assert result.returncode == 0, result.stderr[-3000:]
    assert lines, result.stderr[-3000:]
    found: dict[str, str | None] = json.loads(lines[-1])
    return found


@pytest.mark.parametrize("name", CHECKS)
def test_in_lerobot(name: str, outcomes: dict[str, str | None]) -> None:
    outcome = outcomes[name]
    if outcome and outcome.startswith("skip: "):
        pytest.skip(outcome.removeprefix("skip: "))
    assert outcome is None, outcome


def test_plugin_and_files_do_without_lerobot() -> None:
    code = "import sys, flowleap.lerobot.folder; print('lerobot' in sys.modules, 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=HERE)
    assert result.stdout.split() == ["False", "False"], result.stderr


def test_default_names() -> None:
    camera = ObsKey((8, 8, 3), "uint8", "rgb")
    own = Spec({"joints": ObsKey((6,)), "gripper": ObsKey(()), "top": camera}, 7)
    assert features.default_names(own) == {
        "joints": "observation.state",
        "gripper": "observation.state",
        "top": "observation.images.top",
    }
    recorded = Spec({"state": ObsKey((6,)), "environment_state": ObsKey((4,)), "top": camera}, 6)
    assert features.default_names(recorded) == {
        "state": "observation.state",
        "environment_state": "observation.environment_state",
        "top": "observation.images.top",
    }
    shapes = features.input_features(own, features.default_names(own))
    assert shapes == {
        "observation.state": {"type": "STATE", "shape": [7]},
        "observation.images.top": {"type": "VISUAL", "shape": [3, 8, 8]},
    }


def test_export_verb_writes_the_files(tmp_path: Path) -> None:
    pytest.importorskip("gym_pusht", reason="needs flowleap[pusht]")
    untrained().save(tmp_path / "run", info={"task": {"name": "pusht/keypoints", "kwargs": {}}})
    names = "{agent_pos: observation.state, keypoints: observation.environment_state}"
    words = [f"checkpoint={tmp_path / 'run'}", f"lerobot={names}", f"out={tmp_path / 'out'}"]
    assert cli.main(["export", *words]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["names"] == NAMES
    # As `flowleap eval` keeps actions on the board.
    assert config["clip"] == [[0, 0], [512, 512]]
    assert config["input_features"]["observation.environment_state"] == {"type": "ENV", "shape": [16]}


def test_names_of_an_export() -> None:
    assert folder.names_of(SPEC, True, trained=NAMES) == NAMES
    assert set(folder.names_of(SPEC, True).values()) == {"observation.state"}
    for names, words in [
        ({"agent_pos": "observation.state"}, "'keypoints' needs"),
        ({**NAMES, "agent": "observation.x"}, "did you mean 'agent_pos'"),
        ({**NAMES, "keypoints": "state"}, "got 'state'"),
        ("yes", "neither true nor a mapping"),
    ]:
        with pytest.raises(FlowleapError, match=re.escape(words)):
            folder.names_of(SPEC, names)  # type: ignore[arg-type]
    converted = Spec(SPEC.observations, 2, action_convention="delta", source={"relative_of": "absolute"})
    converted.source["relative_to"] = "agent_pos"
    with pytest.raises(FlowleapError, match="OwnActions"):
        folder.names_of(converted, True)


def test_split_cuts_vectors_and_turns_images() -> None:
    keys = {"joints": ObsKey((2,)), "gripper": ObsKey(()), "top": ObsKey((4, 5, 3), "uint8", "rgb")}
    spec = Spec(keys, 2, n_obs_steps=2)
    names = features.default_names(spec)
    pixels = torch.arange(2 * 2 * 60, dtype=torch.uint8).reshape(2, 2, 4, 5, 3)
    given = {
        "observation.state": torch.arange(12.0).reshape(2, 2, 3),
        "observation.images.top": pixels.movedim(-1, -3).float() / 255,
    }
    cut = features.split(spec, names, given)
    assert torch.equal(cut["joints"], given["observation.state"][..., :2])
    assert torch.equal(cut["gripper"], given["observation.state"][..., 2])
    assert cut["top"].dtype == torch.uint8
    assert torch.equal(cut["top"], pixels)
    single = features.split(spec, names, {name: x[:, 0] for name, x in given.items()})
    assert single["gripper"].shape == (2,)
    with pytest.raises(FlowleapError, match=r"holds 2 numbers, the policy expects 3 \(joints, gripper\)"):
        features.split(spec, names, {**given, "observation.state": torch.zeros(2, 2, 2)})


def test_split_finds_the_lost_axis_of_one_number() -> None:
    spec = Spec({"width": ObsKey((1,))}, 1, n_obs_steps=2)
    names = {"width": "observation.width"}
    for shape, expected in [((3, 2), (3, 2, 1)), ((3,), (3, 1)), ((3, 1), (3, 1)), ((3, 2, 1), (3, 2, 1))]:
        assert (
            features.split(spec, names, {"observation.width": torch.zeros(shape)})["width"].shape == expected
        )


@pytest.mark.parametrize("mode", ["minmax", "gaussian", "quantile", "identity"])
def test_normalizer_from_statistics(mode: Any) -> None:
    spec = Spec({"state": ObsKey((3,))}, 2)
    rng = np.random.default_rng(1)
    columns = {"state": rng.normal(5, [1, 20, 300], (4000, 3)), "action": rng.normal(0, [1, 50], (4000, 2))}
    columns["state"][:, 0] = 7
    whole, small = (Normalizer(spec, obs=mode, action=mode) for _ in range(2))
    whole.fit(columns)
    entries = {"min": np.min, "max": np.max, "mean": np.mean, "std": np.std}
    stats = {
        "observation.state" if key == "state" else key: {
            **{name: entry(x, axis=0) for name, entry in entries.items()},
            **{f"q{q:02}": np.quantile(x, q / 100, axis=0) for q in (1, 99)},
        }
        for key, x in columns.items()
    }
    small.fit(columns_of(small.modes, {"state": "observation.state"}, stats))
    for key in columns:
        ours, theirs = whole.range_of(key), small.range_of(key)
        assert (ours is None) == (theirs is None) == (mode == "identity")
        for a, b in zip(ours or (), theirs or (), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    if mode == "quantile":
        del stats["action"]["q99"]
        with pytest.raises(FlowleapError, match="no q99 of 'action'"):
            columns_of(small.modes, {"state": "observation.state"}, stats)


def test_served_counts_late_and_missing_answers() -> None:
    observed = [0.0, 0.1, 0.2, 0.3]
    report = served(observed, [0.01, None, 0.35, 0.31], fps=10)
    assert (report["ticks"], report["served"], report["share"]) == (4, 2, 0.5)
    assert report["rate_hz"] == pytest.approx(10)


def test_spec_of_a_dataset_has_the_keys_of_flowleap_train() -> None:
    known = {
        "observation.state": ("STATE", (6,)),
        "observation.images.top": ("VISUAL", (3, 8, 9)),
        "action": ("ACTION", (6,)),
    }
    spec, names = features.spec_of(known, 6)
    assert spec.observations == {"state": ObsKey((6,)), "top": ObsKey((8, 9, 3), "uint8", "rgb")}
    assert names == {"state": "observation.state", "top": "observation.images.top"}
    with pytest.raises(FlowleapError, match="flowleap train"):
        features.spec_of({"observation.images.depth": ("VISUAL", (1, 8, 9))}, 6)
