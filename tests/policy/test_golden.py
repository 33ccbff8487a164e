"""Files of flowleap 0.1, as it wrote them: checkpoints and exports act as they did, a run goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from flowleap.policy.deploy.runtime import ExportedPolicy
from flowleap.policy.policy import Policy
from flowleap.scripts.cli.main import main

OLD = Path(__file__).parents[1] / "data" / "v0.1"
EXPECTED = np.load(OLD / "expected.npz")
TOLERANCE = 1e-5  # relative to the action's size, and absolute


def observations(name: str) -> dict[str, np.ndarray]:
    """What the named policy was shown, {key: [B, To, *shape]}."""
    prefix = f"{name}/obs/"
    return {key.removeprefix(prefix): EXPECTED[key] for key in EXPECTED.files if key.startswith(prefix)}


def act(policy: Policy, name: str, steps: int) -> np.ndarray:
    """The chunk [B, Ta, A] on the observations and noise of the named policy."""
    obs = {key: torch.from_numpy(x) for key, x in observations(name).items()}
    return policy.act(obs, torch.from_numpy(EXPECTED[f"{name}/noise"]), steps).numpy()


@pytest.mark.parametrize("name", sorted(path.name for path in (OLD / "checkpoints").iterdir()))
def test_checkpoints_act_as_they_did(name: str) -> None:
    action = act(Policy.load(OLD / "checkpoints" / name), name, int(EXPECTED[f"{name}/steps"]))
    np.testing.assert_allclose(action, EXPECTED[f"{name}/action"], rtol=TOLERANCE, atol=TOLERANCE)


def test_a_checkpoint_older_than_head_sigma_has_none(tmp_path: Path) -> None:
    copy = shutil.copytree(OLD / "checkpoints" / "mlp_isd", tmp_path / "checkpoint")
    manifest = json.loads((copy / "policy.json").read_text())
    del manifest["policy"]["head_sigma"]
    (copy / "policy.json").write_text(json.dumps(manifest))
    assert Policy.load(copy).head_sigma == 0.0


def test_the_export_acts_as_it_did() -> None:
    exported = ExportedPolicy.load(OLD / "export_nfe1")
    action = exported.act(observations("export_nfe1"), EXPECTED["export_nfe1/noise"])
    np.testing.assert_allclose(action, EXPECTED["export_nfe1/action"], rtol=TOLERANCE, atol=TOLERANCE)


def test_the_run_acts_as_it_did_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = shutil.copytree(OLD / "run", tmp_path / "run", symlinks=True)
    shutil.copytree(OLD / "store.zarr", tmp_path / "store.zarr")
    policy = Policy.load(run)
    np.testing.assert_allclose(
        act(policy, "export_nfe1", 1), EXPECTED["run/action"], rtol=TOLERANCE, atol=TOLERANCE
    )
    monkeypatch.chdir(tmp_path)  # where the run's relative path to its dataset leads
    assert main(["train", "resume=run", "trainer.stop_at=0"]) == 0
    resumed = Policy.load(run)
    assert (policy.info["step"], resumed.info["step"]) == (6, 12)
    assert not np.array_equal(act(resumed, "export_nfe1", 1), EXPECTED["run/action"])
