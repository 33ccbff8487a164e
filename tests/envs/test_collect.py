"""Collecting demonstrations: what is recorded, determinism, interruption, failure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from omegaconf import OmegaConf

from flowleap.envs import demonstrate as demonstrate_module
from flowleap.envs.demonstrate import demonstrate, demonstrations
from flowleap.envs.registry import make_task
from flowleap.policy.core.errors import FlowleapError
from flowleap.scripts import collect

pytest.importorskip("metaworld")

TASK = "metaworld/button-press-v3"


def config(out: Path, **changes):
    base = OmegaConf.load(Path(collect.__file__).resolve().parent.parent / "configs" / "collect.yaml")
    del base["defaults"]
    task = {"task": {"name": TASK, "kwargs": {}}}
    return OmegaConf.merge(base, task, {"episodes": 3, "n_envs": 1, "out": str(out), **changes})


def columns(path: Path) -> dict[str, np.ndarray]:
    store = zarr.open_group(str(path), mode="r")
    return {f"{g}/{k}": np.asarray(v[:]) for g in ("data", "meta") for k, v in store[g].arrays()}


def test_noise_is_executed_but_not_recorded():
    task = make_task(TASK)
    env = task.make_env()
    clean, noisy = (demonstrate(task, env, 4, action_noise=sigma) for sigma in (0.0, 0.2))
    expert = task.expert(env, 4)
    for attempt in (clean, noisy):
        for state, action in zip(attempt.columns["state"], attempt.columns["action"], strict=True):
            np.testing.assert_array_equal(expert.act({"state": state}), action)
    np.testing.assert_array_equal(clean.columns["state"][0], noisy.columns["state"][0])
    assert not np.array_equal(clean.columns["state"][10], noisy.columns["state"][10])


def test_an_episode_ends_a_few_frames_after_success():
    task = make_task(TASK)
    env = task.make_env()
    short, long = (demonstrate(task, env, 0, hold_steps=hold) for hold in (0, 7))
    n = len(short.columns["action"])
    assert short.success
    assert len(long.columns["action"]) == n + 7
    np.testing.assert_array_equal(short.columns["state"], long.columns["state"][:n])
    env.reset(seed=0)
    for step, action in enumerate(short.columns["action"]):
        *_, info = env.step(action)
        assert info["success"] == (step == n - 1)


def test_attempts_come_in_the_order_of_seeds():
    attempts = demonstrations(make_task(TASK), first_seed=20, n_envs=2)
    assert [next(attempts).seed for _ in range(4)] == [20, 21, 22, 23]
    attempts.close()


def test_the_store_does_not_depend_on_the_number_of_workers(tmp_path):
    results = [
        collect.main(config(tmp_path / f"{n}.zarr", n_envs=n, seed=50, action_noise=0.1)) for n in (1, 2)
    ]
    assert results[0] == results[1]
    one, two = columns(tmp_path / "1.zarr"), columns(tmp_path / "2.zarr")
    assert one.keys() == two.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], two[key])
    attrs = zarr.open_group(str(tmp_path / "1.zarr"), mode="r").attrs
    assert (attrs["task"], attrs["successes"], attrs["first_seed"]) == (TASK, 3, 50)
    assert attrs["versions"]["metaworld"]
    assert len(one["meta/episode_ends"]) == 3
    assert one["data/state"].shape == (one["meta/episode_ends"][-1], 39)


def test_failed_attempts_are_left_out_and_counted(tmp_path, monkeypatch):
    real = demonstrate_module.demonstrate

    def every_second_fails(task, env, seed, *options):
        attempt = real(task, env, seed, *options)
        return attempt if seed % 2 else demonstrate_module.Demonstration(seed, False, attempt.columns)

    monkeypatch.setattr(demonstrate_module, "demonstrate", every_second_fails)
    attrs = collect.main(config(tmp_path / "a.zarr"))
    assert (attrs["attempts"], attrs["successes"]) == (6, 3)
    assert columns(tmp_path / "a.zarr")["meta/episode_seeds"].tolist() == [1, 3, 5]
    with pytest.raises(FlowleapError, match=r"only 2 of 4 attempts.*kept"):
        collect.main(config(tmp_path / "b.zarr", episodes=4, max_attempts_factor=1))
    assert len(columns(tmp_path / "b.zarr")["meta/episode_ends"]) == 2


def test_no_success_writes_nothing(tmp_path):
    impossible = {"name": TASK, "kwargs": {"max_steps": 2}}
    with pytest.raises(FlowleapError, match="failed in all of 3 attempts"):
        collect.main(config(tmp_path / "a.zarr", task=impossible, episodes=1))
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_keeps_what_was_recorded(tmp_path, monkeypatch):
    real = demonstrate_module.demonstrate

    def interrupted(task, env, seed, *options):
        if seed == 2:
            raise KeyboardInterrupt
        return real(task, env, seed, *options)

    monkeypatch.setattr(demonstrate_module, "demonstrate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect.main(config(tmp_path / "a.zarr"))
    assert len(columns(tmp_path / "a.zarr")["meta/episode_ends"]) == 2
    assert zarr.open_group(str(tmp_path / "a.zarr"), mode="r").attrs["successes"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_bad_requests(tmp_path):
    with pytest.raises(FlowleapError, match="no scripted expert"):
        collect.main(config(tmp_path / "a.zarr", task={"name": "pusht/state", "kwargs": {}}))
    with pytest.raises(FlowleapError, match="episodes=0"):
        collect.main(config(tmp_path / "a.zarr", episodes=0))
    with pytest.raises(FlowleapError, match="action_noise=-1"):
        collect.main(config(tmp_path / "a.zarr", action_noise=-1))
    with pytest.raises(FlowleapError, match="n_envs=0"):
        collect.main(config(tmp_path / "a.zarr", n_envs=0))
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(FlowleapError, match="exists already"):
        collect.main(config(tmp_path / "a.zarr"))
