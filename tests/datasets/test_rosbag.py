"""ROS bags: topics at a common rate, nothing of the future, the action that was commanded after a frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowleap.datasets.dataset import detect, open_dataset
from flowleap.policy.core.errors import FlowleapError
from flowleap.scripts.cli import main as cli

rosbag1 = pytest.importorskip("rosbags.rosbag1")
rosbag2 = pytest.importorskip("rosbags.rosbag2")
typesys = pytest.importorskip("rosbags.typesys")

START = 1_700_000_000.0
TOPICS = {"joints": "/joint_states.position", "top": "/camera", "action": "/command"}


def write(path: Path, kind: str, seconds: float = 3.0, **changes: Any) -> None:
    """A bag with joints at 50 Hz (stamped, jittering), images at 10 Hz and commands at 25 Hz (recording time).

    Every number says when it was so: joints hold the time since the start, in an order of names that changes; the grey
    level of an image is its number; a command is the time at which it was given.
    """
    store = typesys.get_typestore(
        typesys.Stores.ROS1_NOETIC if kind == "ros1" else typesys.Stores.ROS2_HUMBLE
    )
    types, rng = store.types, np.random.default_rng(0)

    def header(t: float) -> Any:
        stamp = types["builtin_interfaces/msg/Time"](int(START + t), round((START + t) % 1 * 1e9))
        named = types["std_msgs/msg/Header"]
        return named(0, stamp, "base") if kind == "ros1" else named(stamp, "base")

    def joints(t: float, k: int) -> Any:
        names, values = ["b", "a"], [2 * t, t]
        order = [0, 1] if k % 2 else [1, 0]
        named, position = [names[i] for i in order], np.array([values[i] for i in order])
        return types["sensor_msgs/msg/JointState"](header(t), named, position, np.zeros(2), np.zeros(0))

    def image(t: float, k: int) -> Any:
        pixels = np.full((32, 32, 3), (k, 0, 255), np.uint8)
        return types["sensor_msgs/msg/Image"](header(t), 32, 32, "bgr8", 0, 96, pixels.reshape(-1))

    def command(t: float, k: int) -> Any:
        layout = types["std_msgs/msg/MultiArrayLayout"]([], 0)
        return types["std_msgs/msg/Float64MultiArray"](layout, np.array([t, -t]))

    silent = changes.get("silent", (9.0, 9.0))
    rows = []
    for topic, rate, make, jitter in (
        ("/joint_states", 50, joints, 0.004),
        ("/camera", 10, image, 0),
        ("/command", 25, command, 0),
    ):
        for k in range(int(seconds * rate)):
            t = k / rate + rng.uniform(0, jitter)
            if topic != "/camera" or not silent[0] < t < silent[1]:
                delay = 0.05 if topic == "/joint_states" else 0.0  # recorded later than stamped
                rows.append((t + delay, topic, make(t, k)))
    rows.sort(key=lambda row: row[0])
    if kind == "ros1":
        bag: Any = rosbag1.Writer(path)
    else:
        plugin = rosbag2.StoragePlugin.MCAP if kind == "mcap" else rosbag2.StoragePlugin.SQLITE3
        bag = rosbag2.Writer(path, version=9, storage_plugin=plugin)
    with bag:
        connections: dict[str, Any] = {}
        for t, topic, message in rows:
            name = message.__msgtype__
            if topic not in connections:
                connections[topic] = bag.add_connection(topic, name, typestore=store)
            data = (
                store.serialize_ros1(message, name) if kind == "ros1" else store.serialize_cdr(message, name)
            )
            bag.write(connections[topic], round((START + t) * 1e9), data)


@pytest.mark.parametrize("kind", ["ros1", "ros2", "mcap"])
def test_frames_at_a_common_rate(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("run.bag" if kind == "ros1" else "run")
    write(path, kind)
    assert detect(path) == "rosbag"
    with open_dataset(path, topics=TOPICS, rate=10.0) as dataset:
        assert dataset.spec.control_hz == 10
        assert dataset.spec.observations["top"].kind == "rgb"
        episode = dataset.episode(0)
        times = dataset.times(0)
    assert times is not None
    times = times - START
    a, b = episode["joints"].T  # in the order of their names
    np.testing.assert_allclose(b, 2 * a, rtol=1e-4)
    assert ((a <= times + 1e-6) & (a > times - 0.025)).all()  # the latest, and nothing of the future
    assert (
        (episode["action"][:, 0] <= times + 0.1 + 1e-6) & (episode["action"][:, 0] > times + 0.1 - 0.041)
    ).all()
    numbers = np.floor(times * 10 + 1e-6)
    np.testing.assert_array_equal(
        episode["top"][:, 3, 3], np.stack([np.full(len(times), 255), 0 * numbers, numbers], 1)
    )
    assert len(times) == 29


def test_default_rate_and_folders_of_bags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bags").mkdir()
    for i, seconds in ((2, 2.0), (10, 1.5)):
        write(tmp_path / "bags" / f"run_{i}", "ros2", seconds)
    topics = "topics={joints: '/joint_states.position[b]', action: /command}"
    out = tmp_path / "out.zarr"
    assert cli.main(["convert", f"source={tmp_path / 'bags'}", f"out={out}", topics]) == 0
    with open_dataset(out) as dataset:
        assert dataset.spec.control_hz == 25  # of the slowest topic
        assert [len(dataset.episode(i)["action"]) for i in range(2)] == [49, 36]
        assert dataset.spec.observations["joints"].shape == (1,)
    assert cli.main(["inspect", f"dataset={tmp_path / 'bags'}", topics, "rate=10"]) == 0
    assert "10 Hz" in capsys.readouterr().out


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    write(tmp_path / "run", "ros2", silent=(1.0, 2.4))
    with pytest.raises(
        FlowleapError, match=r"say which topics .* /joint_states \(sensor_msgs/msg/JointState\)"
    ):
        open_dataset(tmp_path / "run")
    with pytest.raises(FlowleapError, match=r"no topic '/comand'.* did you mean '/command'"):
        open_dataset(tmp_path / "run", topics=TOPICS | {"action": "/comand"})
    with pytest.raises(
        FlowleapError, match=r"'top' is silent for 1.40 s at 1.0 s|'top' is silent for 1\.[34]"
    ):
        open_dataset(tmp_path / "run", topics=TOPICS, rate=10.0)
    with pytest.raises(FlowleapError, match=r"no field 'positions'.*position"):
        open_dataset(
            tmp_path / "run", topics={"q": "/joint_states.positions", "action": "/command"}, rate=10.0
        )
    with pytest.raises(FlowleapError, match="is no topic: write /topic"):
        open_dataset(tmp_path / "run", topics={"q": "joint states", "action": "/command"})
    (tmp_path / "run" / "run.db3").write_bytes(b"SQLite format 3\x00 and then nothing")
    with pytest.raises(
        FlowleapError, match=r"bag '.*run' cannot be read .*not a database.*: copy or reindex it"
    ):
        open_dataset(tmp_path / "run", topics=TOPICS)
