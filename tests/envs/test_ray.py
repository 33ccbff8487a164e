"""Evaluation and collection on a Ray cluster: two nodes, each of its own processes, on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
from worker_tasks import SPEC, die, drift_task, once, policy

from flowleap.envs.demonstrate import demonstrations
from flowleap.envs.ray_workers import cpus
from flowleap.envs.rollout import rollout
from flowleap.envs.workers import default_count
from flowleap.policy.core.errors import FlowleapError, FlowleapWarning

ray = pytest.importorskip("ray", reason="pip install 'flowleap[ray]'")

SEEDS = [3, 14, 15, 92, 65]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of two nodes with a CPU each."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    nodes = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    nodes.add_node(**node)
    nodes.wait_for_nodes()
    yield nodes.address
    ray.shutdown()
    nodes.shutdown()


def test_the_seed_alone_decides_on_a_cluster_too(cluster, tmp_path):
    here = rollout(drift_task(closed=tmp_path), policy, SPEC, SEEDS)
    (tmp_path / str(os.getpid())).unlink()
    there = rollout(drift_task(closed=tmp_path), policy, SPEC, SEEDS, n_envs=2, cluster=cluster)
    assert there.episodes == here.episodes
    assert (there.n_envs, there.restarts) == (2, [])
    closed = {path.name for path in tmp_path.iterdir()}  # by processes that are none of ours
    assert len(closed) == 2
    assert str(os.getpid()) not in closed
    assert default_count(cluster) == cpus(cluster) == 2
    with pytest.raises(FlowleapError, match="n_envs=3 exceeds the 2 CPUs of the Ray cluster"):
        rollout(drift_task(), policy, SPEC, SEEDS, n_envs=3, cluster=cluster)


def test_actors_that_die_are_replaced_and_what_raises_is_named(cluster, tmp_path):
    expected = rollout(drift_task(), policy, SPEC, SEEDS).episodes
    with pytest.warns(FlowleapWarning, match="seed 15: its worker is replaced: Ray says ActorDiedError"):
        result = rollout(drift_task(once(tmp_path, 15, die)), policy, SPEC, SEEDS, 2, cluster=cluster)
    assert result.episodes == expected
    assert [restart.seed for restart in result.restarts] == [15]

    def fault(seed: int, step: int) -> None:
        raise ValueError("the motor is on fire")

    with pytest.raises(FlowleapError, match="task test/drift: the environment failed: ValueError: the motor"):
        rollout(drift_task(fault), policy, SPEC, SEEDS, n_envs=2, cluster=cluster)


def test_attempts_of_an_expert_are_the_same_on_a_cluster(cluster):
    here = list(islice(demonstrations(drift_task(), 10, action_noise=0.1), 4))
    attempts = demonstrations(drift_task(), 10, 2, action_noise=0.1, cluster=cluster)
    for one, other in zip(here, islice(attempts, 4), strict=True):
        assert (one.seed, one.success) == (other.seed, other.success)
        np.testing.assert_equal(one.columns, other.columns)
    attempts.close()
