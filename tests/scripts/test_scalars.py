"""One number a frame, stored as [T]: an observation and an action of that kind, in every format and every verb."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from layouts import LAYOUTS

from flowleap.datasets.dataset import open_dataset
from flowleap.policy import ExportedPolicy, Policy
from flowleap.scripts.cli import main as cli

pytest.importorskip("h5py", reason="needs flowleap[formats]")
pytest.importorskip("pyarrow", reason="needs flowleap[formats]")
LENGTHS = (9, 6)
WIDTH = [np.linspace(i, i + 1, n, dtype=np.float32) for i, n in enumerate(LENGTHS)]
FAST = ["trainer.steps=2", "trainer.batch_size=8", "trainer.device=cpu", "trainer.progress=false"]


@pytest.fixture(params=LAYOUTS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    episodes = [{"width": width, "action": width[::-1].copy()} for width in WIDTH]
    return LAYOUTS[request.param](tmp_path / "x.data", episodes)


def test_read_and_converted(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = [tmp_path / "a.zarr", tmp_path / "b.hdf5", tmp_path / "c"]
    for target in targets:
        to = ["to=lerobot"] if not target.suffix else []
        assert cli.main(["convert", f"source={path}", f"out={target}", "control_hz=10", *to]) == 0
    for place in (path, *targets):
        with open_dataset(place) as source:
            assert (source.spec.observations["width"].size, source.spec.action_dim) == (1, 1)
            for i, width in enumerate(WIDTH):
                got = source.episode(i)
                np.testing.assert_array_equal(got["width"].ravel(), width)
                np.testing.assert_array_equal(got["action"], width[::-1, None])
            batch = source.windows(n_obs_steps=2, horizon=3).gather(np.array([0, 10]))
        np.testing.assert_array_equal(batch["obs"]["width"].reshape(2, 2), [[0, 0], WIDTH[1][:2]])
        np.testing.assert_array_equal(batch["action"][1, :, 0], WIDTH[1][::-1][1:4])
        assert cli.main(["inspect", f"dataset={place}"]) == 0
        assert "width" in capsys.readouterr().out


def test_trained_exported_and_asked(path: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "exported"
    assert cli.main(["train", f"dataset={path}", f"run_dir={run}", *FAST]) == 0
    if not (path / "data" / "width").exists():
        return  # what is exported does not know the format
    assert cli.main(["export", f"checkpoint={run}", f"out={out}"]) == 0
    policy, exported = Policy.load(run / "checkpoints" / "last"), ExportedPolicy.load(out)
    shape = (1, policy.spec.n_obs_steps, *policy.spec.observations["width"].shape)
    obs, noise = {"width": np.full(shape, 0.5, np.float32)}, np.zeros((1, policy.spec.horizon, 1), np.float32)
    chunk = exported.act(obs, noise)
    assert chunk.shape == (1, policy.spec.n_action_steps, 1)
    np.testing.assert_allclose(
        chunk, policy.act({"width": torch.tensor(obs["width"])}, torch.tensor(noise)), atol=1e-4
    )


def test_shown(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="needs flowleap[viewer]")
    assert cli.main(["view", f"dataset={path}", f"save={tmp_path}/x.rrd"]) == 0
