"""Results files: what is read of them, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results import write_evaluation

from flowleap.envs.evaluations import (
    aligned,
    differing,
    find_files,
    read_evaluation,
    read_policy,
    require_comparable,
)
from flowleap.policy.core.errors import FlowleapError


def test_what_is_read(tmp_path: Path) -> None:
    late = {"continuity": "prefix", "delay": 4}
    file = write_evaluation(tmp_path / "run" / "eval" / "x.json", [1, 0, 1], [1.0, 0.2, 0.9], continuity=late)
    data = json.loads(file.read_text())
    data["rows"].reverse()
    file.write_text(json.dumps(data))
    e = read_evaluation(file)
    assert e.seeds.tolist() == [100000, 100001, 100002]
    assert e.values["success"].tolist() == [1, 0, 1]
    assert e.values["max_reward"].tolist() == [1.0, 0.2, 0.9]
    assert (e.task, e.protocol, e.headline) == ("metaworld/door-open-v3", "flowleap", "success")
    assert e.conditions["delay"] == "4 steps, prefix"
    assert e.rates == {"success"}


def test_a_task_without_success_has_none_to_compare(tmp_path: Path) -> None:
    file = write_evaluation(tmp_path / "run" / "eval" / "x.json", [1, 0])
    data = json.loads(file.read_text())
    data["summary"]["reports_success"] = False
    file.write_text(json.dumps(data))
    with pytest.raises(FlowleapError, match="no metric 'success'"):
        read_policy("a", [str(file)]).runs("success")
    with pytest.raises(FlowleapError, match="did you mean 'max_reward'"):
        read_policy("a", [str(file)]).runs("max_rewards")


def drop(key: str) -> Any:
    return lambda data: data.pop(key)


def repeat(data: dict[str, Any]) -> None:
    data["rows"].append(data["rows"][0])


def not_a_number(data: dict[str, Any]) -> None:
    data["rows"][1]["max_reward"] = float("nan")


def no_success(data: dict[str, Any]) -> None:
    del data["rows"][1]["success"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("rows"), "no 'rows'"),
        (drop("summary"), "no 'summary'"),
        (drop("nfe"), "no 'nfe'"),
        (drop("actor"), "no 'actor'"),
        (no_success, "no 'success'"),
        (repeat, "episode of seed 100000 twice"),
        (not_a_number, "max_reward of seed 100001 is no finite number"),
        (lambda data: data.update(rows=[]), "no episode"),
        (lambda data: data.update(rows=[1, 2]), "no results file"),
        (lambda data: data.update(rows=[{"seed": "x"}]), "no results file"),
        (lambda data: data.update(summary=None), "no results file"),
    ],
)
def test_damaged_files(tmp_path: Path, change: Any, message: str) -> None:
    file = write_evaluation(tmp_path / "run" / "eval" / "x.json", [1, 0, 1])
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    with pytest.raises(FlowleapError, match=message) as error:
        read_evaluation(file)
    assert "x.json" in str(error.value)


@pytest.mark.parametrize("text", ['{"rows": [', "", "[1, 2]", "\x00\xff"])
def test_files_that_are_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(FlowleapError, match=r"x\.json"):
        read_evaluation(file)


def test_files_by_folder_and_glob(tmp_path: Path) -> None:
    old = write_evaluation(tmp_path / "isd_0" / "eval" / "old.json", [1])
    new = write_evaluation(tmp_path / "isd_0" / "eval" / "new.json", [1])
    other = write_evaluation(tmp_path / "isd_1" / "eval" / "x.json", [1])
    os.utime(old, (1, 1))
    assert find_files(str(tmp_path / "isd_0")) == [new]
    assert find_files(str(old)) == [old]
    assert find_files(str(tmp_path / "isd_*")) == [new, other]
    assert find_files(str(tmp_path / "isd_*" / "eval" / "x.json")) == [other]
    (tmp_path / "empty").mkdir()
    for word, message in ((tmp_path / "nothing_*", "no results"), (tmp_path / "empty", "flowleap eval")):
        with pytest.raises(FlowleapError, match=message):
            find_files(str(word))


def test_the_runs_of_a_label_are_alike(tmp_path: Path) -> None:
    files = [str(write_evaluation(tmp_path / f"r{i}" / "eval" / "x.json", [1, 0])) for i in range(3)]
    policy = read_policy("isd", files)
    assert policy.crossed
    assert np.shape(policy.runs("success")) == (3, 2)
    more = write_evaluation(tmp_path / "r3" / "eval" / "x.json", [1, 0], nfe=10)
    with pytest.raises(FlowleapError, match=r"differ in NFE: 1 in .* 10 in"):
        read_policy("isd", [*files, str(more)])
    twice = write_evaluation(tmp_path / "r0" / "eval" / "y.json", [1, 0])
    with pytest.raises(FlowleapError, match="one policy"):
        read_policy("isd", [*files, str(twice)])


def test_tasks_and_protocols_are_never_mixed(tmp_path: Path) -> None:
    a = read_policy("a", [str(write_evaluation(tmp_path / "a" / "eval" / "x.json", [1]))])
    b = write_evaluation(tmp_path / "b" / "eval" / "x.json", [1], task="pusht/state")
    c = write_evaluation(tmp_path / "c" / "eval" / "x.json", [1], protocol="dp3")
    d = write_evaluation(tmp_path / "d" / "eval" / "x.json", [1], protocol="flowleap", nfe=4)
    with pytest.raises(FlowleapError, match=r"task of .* pusht/state"):
        require_comparable([a, read_policy("b", [str(b)])])
    with pytest.raises(FlowleapError, match=r"protocol of .* dp3"):
        require_comparable([a, read_policy("c", [str(c)])])
    other = read_policy("d", [str(d)])
    require_comparable([a, other])
    assert differing([a, other]) == {"NFE": [1, 4]}


def test_seeds_decide_what_is_paired(tmp_path: Path) -> None:
    def policy(name: str, n: int, first_seed: int = 0) -> Any:
        values = (np.arange(first_seed, first_seed + n) % 3 == 0).tolist()
        file = write_evaluation(tmp_path / name / "eval" / "x.json", values, first_seed=first_seed)
        return read_policy(name, [str(file)])

    a, more, apart, hardly = policy("a", 6), policy("b", 9, 2), policy("c", 6, 100), policy("d", 6, 4)
    first, second, paired = aligned(a, more, "success")
    assert paired
    np.testing.assert_array_equal(first, second)  # of seeds 2 to 5
    assert np.shape(first) == (1, 4)
    assert not aligned(a, apart, "success")[2]
    with pytest.raises(FlowleapError, match="share 2 seeds of 6 and 6"):
        aligned(a, hardly, "success")


def test_runs_with_seeds_of_their_own_are_nested(tmp_path: Path) -> None:
    files = [
        str(write_evaluation(tmp_path / f"r{i}" / "eval" / "x.json", [1] * (3 + i), first_seed=50 * i))
        for i in range(2)
    ]
    policy = read_policy("isd", files)
    assert not policy.crossed
    assert [len(own) for own in policy.runs("success")] == [3, 4]
    one = read_policy("one", files[:1])
    assert not aligned(policy, one, "success")[2]
