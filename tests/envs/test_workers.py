"""Workers: independent of each other, replaced when they die or hang, and gone afterwards."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
import worker_tasks
from worker_tasks import SPEC, DriftEnv, die, drift_task, hang, once, policy

from flowleap.envs.demonstrate import demonstrations
from flowleap.envs.processes import Channel
from flowleap.envs.registry import make_task, register_task
from flowleap.envs.rollout import Rollout, rollout
from flowleap.envs.workers import Restart
from flowleap.policy.core.errors import FlowleapError, FlowleapWarning
from flowleap.policy.deploy.plan import Continuity
from flowleap.policy.policy import Policy
from flowleap.scripts.cli import compose
from flowleap.scripts.cli import main as cli

KILLED = "it was killed by SIGKILL (out of memory?)"
SEEDS = [3, 14, 15, 92, 65]


@pytest.fixture(autouse=True)
def no_workers_left() -> Iterator[None]:
    """Fail unless every process that the test started has ended (those of other tests' pools may live on)."""
    before = set(multiprocessing.active_children())
    yield
    assert not set(multiprocessing.active_children()) - before


@pytest.fixture
def expected() -> Rollout:
    return rollout(drift_task(), policy, SPEC, SEEDS)


@pytest.mark.parametrize("name", ["probe/slalom", "gym/Pendulum-v1"])
def test_the_seed_alone_decides(name):
    task = make_task(name, **({"max_steps": 40} if "gym" in name else {}))
    spec = task.spec.with_window(2, 16, 8)

    def actor(obs: dict[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
        seen = np.concatenate([value[:, -1] for value in obs.values()], axis=1)
        return (0.2 * noise[:, :8] + 0.05 * seen.sum(axis=1)[:, None, None]).astype(np.float32)

    one, two, eight = (rollout(task, actor, spec, range(12), n_envs=n).episodes for n in (1, 2, 8))
    assert one == two == eight
    assert len({episode.length + episode.sum_reward for episode in one}) > 1


def test_a_slow_episode_holds_up_no_other():
    def slow(seed: int, step: int) -> None:
        time.sleep(0.1 if seed == 0 else 0)

    seen: list[int] = []
    result = rollout(
        drift_task(slow), policy, SPEC, range(8), n_envs=2, on_progress=lambda e: seen.append(e.seed)
    )
    assert seen[-1] == 0
    assert [episode.seed for episode in result.episodes] == list(range(8))


def test_late_chunks_do_not_depend_on_the_number_of_environments():
    def chunker(obs, noise, prefix=None):
        return noise - 0.1 * obs["x"].sum(axis=1)[:, None]

    late = Continuity(delay=1)
    one, two = (rollout(drift_task(), chunker, SPEC, SEEDS, n, continuity=late).episodes for n in (1, 2))
    assert one == two


def test_killing_a_worker_from_outside_changes_nothing(expected):
    calls, others = 0, set(multiprocessing.active_children())

    def killer(obs: dict[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 6:
            worker = next(iter(set(multiprocessing.active_children()) - others))
            os.kill(worker.pid or 0, signal.SIGKILL)
        return policy(obs, noise)

    with pytest.warns(FlowleapWarning, match=r"its worker is replaced: it was killed by SIGKILL"):
        result = rollout(drift_task(), killer, SPEC, SEEDS, n_envs=2)
    assert result.episodes == expected.episodes
    assert [restart.reason for restart in result.restarts] == [KILLED]
    assert result.restarts[0].seed in SEEDS


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (die, KILLED),
        (lambda: os._exit(3), "it exited with code 3"),
        (hang, "no answer within 5 s"),
        (lambda: os.kill(os.getpid(), signal.SIGSTOP), "no answer within 5 s"),
    ],
    ids=["killed", "exits", "sleeps", "stopped"],
)
def test_an_episode_that_loses_its_worker_runs_again(tmp_path, expected, fault, reason):
    faulty = drift_task(once(tmp_path, 15, fault))
    seen: list[int] = []
    with pytest.warns(FlowleapWarning, match="test/drift, seed 15: .* its episode runs again"):
        result = rollout(
            faulty, policy, SPEC, SEEDS, 2, on_progress=lambda e: seen.append(e.seed), worker_timeout=5
        )
    assert result.episodes == expected.episodes
    assert result.restarts == [Restart(15, reason)]
    assert sorted(seen) == sorted(SEEDS)


def test_an_episode_that_kills_its_workers_ends_the_evaluation(tmp_path):
    faulty = drift_task(once(tmp_path, 15, die, times=9))
    seen: list[int] = []
    with (
        pytest.warns(FlowleapWarning),
        pytest.raises(
            FlowleapError, match=r"task test/drift: seed 15 has lost 3 workers, .* killed by SIGKILL"
        ),
    ):
        rollout(faulty, policy, SPEC, SEEDS, 2, on_progress=lambda e: seen.append(e.seed))
    assert len(list(tmp_path.iterdir())) == 3
    assert {3, 14} <= set(seen)  # what was over before is known


def test_an_environment_that_raises_is_asked_once(tmp_path):
    def fault() -> None:
        raise ValueError("the motor is on fire")

    faulty = drift_task(once(tmp_path, 15, fault, times=9))
    with pytest.raises(FlowleapError, match="task test/drift: the environment failed: ValueError: the motor"):
        rollout(faulty, policy, SPEC, SEEDS, 2)
    assert len(list(tmp_path.iterdir())) == 1


def test_environments_that_cannot_be_sent_or_made():
    lock = threading.Lock()
    held = replace(drift_task(), make_env=lambda render_mode=None: DriftEnv(lock, None))
    with pytest.raises(
        FlowleapError, match=r"cannot be sent to a worker \(.*lock.*; n_envs=1 runs it in this"
    ):
        rollout(held, policy, SPEC, SEEDS, 2)

    def absent(render_mode: str | None = None) -> DriftEnv:
        raise OSError("no display")

    for n_envs in (1, 2):
        with pytest.raises(
            FlowleapError, match="task test/drift: the environment failed: OSError: no display"
        ):
            rollout(replace(drift_task(), make_env=absent), policy, SPEC, SEEDS, n_envs)
    with pytest.raises(FlowleapError, match="worker_timeout must be a number"):
        rollout(drift_task(), policy, SPEC, SEEDS, 2, worker_timeout=0)


def test_idle_workers_close_their_environments(tmp_path):
    rollout(drift_task(closed=tmp_path), policy, SPEC, SEEDS, 2)
    closed = {path.name for path in tmp_path.iterdir()}
    assert len(closed) == 2
    assert str(os.getpid()) not in closed


def test_workers_end_with_who_asks_them(tmp_path):
    """A caller that is killed leaves nothing behind."""
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from worker_tasks import *\n"
        "from flowleap.envs.rollout import rollout\n"
        "def actor(obs, noise):\n"
        "    print(*[child.pid for child in __import__('multiprocessing').active_children()], flush=True)\n"
        "    time.sleep(60)\n"
        "rollout(drift_task(), actor, SPEC, [1, 2], 2)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    folder = str(Path(worker_tasks.__file__).parent)
    with psutil.Popen([sys.executable, str(script), folder], stdout=-1, text=True) as caller:
        workers = [psutil.Process(int(pid)) for pid in caller.stdout.readline().split()]
        assert workers
        caller.kill()
        _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


def test_attempts_of_an_expert_survive_their_worker(tmp_path):
    wanted = list(islice(demonstrations(drift_task(), 10), 6))
    faulty = demonstrations(drift_task(once(tmp_path, 12, die)), 10, n_envs=2)
    with pytest.warns(FlowleapWarning, match="test/drift, seed 12: its worker is replaced"):
        found = list(islice(faulty, 6))
    faulty.close()
    for one, other in zip(wanted, found, strict=True):
        assert (one.seed, one.success) == (other.seed, other.success)
        np.testing.assert_equal(one.columns, other.columns)


def test_arrays_travel_through_memory():
    context = multiprocessing.get_context("spawn")
    down = {"action": ((3, 2), "float32")}
    up = {"image": ((2, 480, 640, 3), "uint8"), "x": ((2, 5), "float64")}
    memory = context.RawArray("B", 2_000_000)
    left, right = context.Pipe()
    caller = Channel(left, memory, down, up, first=True)
    worker = Channel(right, memory, up, down, first=False)
    rng = np.random.default_rng(0)
    action, x = rng.normal(size=(3, 2)).astype(np.float32), rng.normal(size=(2, 5))
    image = rng.integers(0, 256, (2, 480, 640, 3), np.uint8)
    caller.send("step", {"action": action})
    message, arrays = worker.receive()
    assert message == "step"
    np.testing.assert_equal(arrays, {"action": action})
    worker.send({"length": 3}, {"image": image, "x": x})
    message, arrays = caller.receive()
    assert message == {"length": 3}
    worker.send(None, {"image": 0 * image, "x": 0 * x})  # into the same memory
    np.testing.assert_equal(arrays, {"image": image, "x": x})


def test_an_evaluation_that_ends_early_keeps_what_is_over(tmp_path, capsys):
    for cached in (compose.choices, compose._store_all):  # other tests may have asked for the tasks before
        cached.cache_clear()
    register_task("test/drift", lambda: drift_task(once(tmp_path / "notes", 2, hang, times=9)))
    (tmp_path / "notes").mkdir()
    parts = {"objective": {"name": "isd"}, "backbone": {"name": "mlp", "width": 8, "depth": 1}}
    Policy(SPEC, {**parts, "encoder": {"name": "lowdim"}}).save(tmp_path / "run")
    words = [
        f"checkpoint={tmp_path}/run",
        "task=test/drift",
        "seed=0",
        "videos=0",
        f"out={tmp_path}/out.json",
    ]
    given = ["episodes=5", "n_envs=2", "worker_timeout=3", "device=cpu"]
    assert cli.main(["eval", *words, *given]) == 1
    said = capsys.readouterr()
    assert "seed 2 has lost 3 workers, the last one: no answer within 3 s" in said.err
    assert f"4 of 5 episodes are over, and kept: {tmp_path}/out_unfinished.json" in said.out
    rows = json.loads((tmp_path / "out_unfinished.json").read_text())["rows"]
    assert [row["seed"] for row in rows] == [0, 1, 3, 4]
    assert not (tmp_path / "out.json").exists()

    register_task("test/drift", lambda: drift_task(once(tmp_path / "notes", 2, die, times=4)))
    assert cli.main(["eval", *words, "episodes=5", "n_envs=2", "device=cpu"]) == 0
    assert f"seed 2 ran again, its worker was lost: {KILLED}" in capsys.readouterr().out
    results = json.loads((tmp_path / "out.json").read_text())
    assert results["restarts"] == [{"seed": 2, "reason": KILLED}]
    assert [row["seed"] for row in results["rows"]] == [0, 1, 2, 3, 4]
