"""ROS 1, ROS 2 and MCAP bags (rosbags, no ROS): topics become columns at a common rate, given by topics={...}

    flowleap convert source=bags out=mine.zarr rate=10 \\
        'topics={joints: /joint_states.position, top: /camera/image_raw, action: /command.position}'

A bag is an episode, a folder of bags a dataset. A column is a topic, `topic.field` a part of its messages, and
`/joint_states.position[elbow,wrist]` the joints of these names. Time is the stamp in the message's header where it has
one, else the time of recording. Frames lie at a steady rate from the first moment at which every topic has spoken to
the last at which all still do. At a frame's time t,

    an observation is the latest message up to t: nothing of the future;
    the action is the latest command up to t + 1/rate: what was commanded after the frame was seen.

A topic that is silent for longer than five of its own periods (and five frames) within an episode is an error.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets.columns import ACTION, Episode, as_stored, require_memory
from flowleap.datasets.formats.base import Source
from flowleap.policy.core.errors import FlowleapError, optional_import, suggest

_SUFFIXES = (".bag", ".mcap", ".db3")
_SILENT = 5.0  # periods of a topic, and frames, without a message that are an interruption
_CHANNELS = {
    "rgb8": "RGB",
    "bgr8": "BGR",
    "rgba8": "RGBA",
    "bgra8": "BGRA",
    "mono8": "L",
    "8UC1": "L",
    "8UC3": "BGR",
}
_NUMBERS = (bool, int, float, np.bool_, np.integer, np.floating)


class _Part(NamedTuple):
    """What a column is: a topic, fields of its messages, and joints by name."""

    topic: str
    fields: tuple[str, ...]
    names: tuple[str, ...]


def detect(path: Path) -> bool:
    """A bag, or a folder of bags."""
    return bool(_bags(path))


class Reader(Source):
    """Bags as a dataset.

    Args:
        path: a bag (`.bag`, `.mcap`, the folder of a ROS 2 bag), or a folder of bags.
        topics: column -> `topic`, `topic.field` or `topic.field[name,...]`; `action` is among them.
        rate: frames per second; None is the median rate of the slowest topic.

    Raises:
        FlowleapError: no topics are given, or one is not there; the message lists those that are.
    """

    def __init__(
        self, path: Path, topics: Mapping[str, str] | None = None, rate: float | None = None
    ) -> None:
        optional_import("rosbags", extra="ros")
        self.path, self._bags = path, _bags(path)
        self.n_episodes = len(self._bags)
        if not topics or ACTION not in topics:
            raise FlowleapError(
                f"'{path}': say which topics are the observations and the action, topics={{NAME: TOPIC, action: "
                f"TOPIC}}, of {self._listed(0)}"
            )
        self._parts = {key: _part(key, str(text)) for key, text in topics.items()}
        self._rate = float(rate) if rate else self._slowest()
        if not 0 < self._rate < 1e4:
            raise FlowleapError(f"rate={rate} must be frames per second, a positive number")
        first = self._read(0, list(self._parts))
        fields = {key: as_stored(values.shape[1:], values.dtype) for key, values in first.items()}
        action = fields.pop(ACTION)
        self.describe(fields, action, {}, control_hz=self._rate, source={"topics": dict(topics)})

    def label(self, index: int) -> str:
        """The bag's name."""
        return self._bags[index].name

    def _slowest(self) -> float:
        """The median rate of the slowest topic of the first bag, rounded to a tenth."""
        times = self._times(0)
        return round(
            min(1 / max(float(np.median(np.diff(t))), 1e-6) for t in times.values() if len(t) > 1), 1
        )

    def _listed(self, index: int) -> str:
        with self._open(index) as reader:
            return ", ".join(
                f"{name} ({topic.msgtype})" for name, topic in sorted(reader.topics.items())[:40]
            )

    @contextmanager
    def _open(self, index: int) -> Iterator[Any]:
        """A bag, read; what is wrong with it names it."""
        reader = optional_import("rosbags.highlevel", extra="ros")
        stores = optional_import("rosbags.typesys", extra="ros")
        humble = stores.get_typestore(
            stores.Stores.ROS2_HUMBLE
        )  # for bags that do not hold their definitions
        try:
            with reader.AnyReader([self._bags[index]], default_typestore=humble) as bag:
                yield bag
        except FlowleapError:
            raise
        except Exception as error:  # rosbags has an exception of its own for each layer
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise FlowleapError(
                f"bag '{self._bags[index]}' cannot be read ({reason}): copy or reindex it"
            ) from error

    def _visit(
        self, index: int, topics: set[str], take: Callable[[str, float, Callable[[], Any]], None]
    ) -> None:
        """Call `take(topic, time of recording in s, message)` for the messages of some topics, in order."""
        with self._open(index) as reader:
            for topic in topics:
                if topic not in reader.topics:
                    known = ", ".join(sorted(reader.topics))
                    hint = f"only {known}{suggest(topic, reader.topics)}"
                    raise FlowleapError(f"'{self._bags[index]}' has no topic '{topic}', {hint}")
            connections = [c for c in reader.connections if c.topic in topics]
            for connection, nanoseconds, raw in reader.messages(connections):
                message = partial(reader.deserialize, raw, connection.msgtype)
                take(connection.topic, nanoseconds * 1e-9, message)

    def _times(self, index: int) -> dict[str, NDArray[np.float64]]:
        """Column -> the times of its messages, increasing, in seconds."""
        found: dict[str, list[float]] = {key: [] for key in self._parts}

        def take(topic: str, recorded: float, message: Callable[[], Any]) -> None:
            body = message()
            for key, part in self._parts.items():
                if part.topic == topic and _speaks(body, part):
                    found[key].append(_stamp(body) or recorded)

        self._visit(index, {part.topic for part in self._parts.values()}, take)
        for key, times in found.items():
            if not times:
                raise self.error(index, key, f"has no message on {self._parts[key].topic}")
        return {key: np.sort(np.array(times)) for key, times in found.items()}

    def _frames(self, index: int) -> tuple[NDArray[np.float64], dict[str, NDArray[np.int64]]]:
        """The times of the frames, and for each column the number of its message at each of them."""
        times = self._times(index)
        period = 1 / self._rate
        begin, end = max(t[0] for t in times.values()), min(t[-1] for t in times.values())
        frames = begin + period * np.arange(max(int((end - begin) * self._rate + 1e-6) + 1, 0))
        if not len(frames):
            raise FlowleapError(
                f"'{self.path}', {self.label(index)}: its topics do not speak at the same time"
            )
        places = {}
        for key, stamps in times.items():
            wanted = frames + period if key == ACTION else frames
            place = np.searchsorted(stamps, wanted + 1e-9, side="right") - 1
            usual = float(np.median(np.diff(stamps))) if len(stamps) > 1 else 0.0
            silent = frames - stamps[place]
            if silent.max() > _SILENT * max(usual, period):
                at, topic = frames[int(silent.argmax())] - begin, self._parts[key].topic
                problem = f"is silent for {silent.max():.2f} s at {at:.2f} s ({topic})"
                raise self.error(index, key, f"{problem}: cut the bag there{self.or_without(index)}")
            places[key] = place
        return frames, places

    def times(self, index: int) -> NDArray[np.float64]:
        """Times of the frames, [T] seconds."""
        return self._frames(index)[0]

    def _read(self, index: int, keys: Sequence[str]) -> Episode:
        """Read some columns of one bag."""
        _, places = self._frames(index)
        wanted = {key: set(places[key].tolist()) for key in keys}
        kept: dict[str, dict[int, NDArray]] = {key: {} for key in keys}
        seen: dict[str, list[float]] = {key: [] for key in keys}

        def take(topic: str, recorded: float, message: Callable[[], Any]) -> None:
            body = message()
            for key in keys:
                part = self._parts[key]
                if part.topic == topic and _speaks(body, part):
                    # Stamps are nearly always in order; where they are not, the order of the stamps counts.
                    seen[key].append(_stamp(body) or recorded)
                    number = len(seen[key]) - 1
                    if number in wanted[key] or number + 1 in wanted[key] or number - 1 in wanted[key]:
                        with self.naming(index, key):
                            kept[key][number] = _values(body, part)

        self._visit(index, {self._parts[key].topic for key in keys}, take)
        columns: Episode = {}
        for key in keys:
            order = np.argsort(seen[key], kind="stable")
            rows = [kept[key].get(int(order[place])) for place in places[key]]
            if any(row is None for row in rows):
                raise self.error(index, key, "has time stamps far out of order")
            shapes = {row.shape for row in rows if row is not None}
            if len(shapes) > 1:
                raise self.error(index, key, f"changes its shape within the bag: {sorted(shapes)}")
            require_memory(len(rows) * rows[0].nbytes, f"'{self.path}', {self.label(index)}: '{key}'")  # type: ignore[union-attr]
            columns[key] = np.stack(rows)  # type: ignore[arg-type]
        return columns


def _bags(path: Path) -> list[Path]:
    """The bags that a path names, in the order of the numbers in their names."""
    if path.is_file():
        return [path] if path.suffix in _SUFFIXES else []
    if (path / "metadata.yaml").is_file():
        return [path]
    if not path.is_dir():
        return []
    inside = [
        p
        for p in path.iterdir()
        if (p.is_file() and p.suffix in _SUFFIXES) or (p / "metadata.yaml").is_file()
    ]
    return sorted(inside, key=lambda p: ([int(digits) for digits in re.findall(r"[0-9]+", p.name)], p.name))


def _part(key: str, text: str) -> _Part:
    """Read `topic.field[name,...]`."""
    match = re.fullmatch(r"(/?[\w/~-]+)((?:\.\w+)*)(?:\[([^\]]+)\])?", text.strip())
    if match is None:
        raise FlowleapError(
            f"topics.{key}={text!r} is no topic: write /topic, /topic.field or /topic.field[joint,joint]"
        )
    fields = tuple(filter(None, match[2].split(".")))
    return _Part(
        match[1], fields, tuple(name.strip() for name in (match[3] or "").split(",") if name.strip())
    )


def _stamp(message: Any) -> float:
    """Seconds of the header's stamp; 0 where there is none."""
    stamp = getattr(getattr(message, "header", None), "stamp", None)
    return 0.0 if stamp is None else stamp.sec + stamp.nanosec * 1e-9


def _speaks(message: Any, part: _Part) -> bool:
    """Whether a message has all joints of a part: several publishers may share a topic."""
    return not part.names or set(part.names) <= set(getattr(message, "name", ()))


def _values(message: Any, part: _Part) -> NDArray:
    """The numbers of a message, or its picture."""
    kind = type(message).__name__.rpartition("__")[2]
    node = message
    for field in part.fields:
        if not hasattr(node, field):
            known = ", ".join(name for name in vars(node) if not name.startswith("__"))
            raise FlowleapError(f"has no field '{field}' in {part.topic}, only {known}")
        node = getattr(node, field)
    if node is message and kind == "Image":
        return _picture(message)
    if node is message and kind == "CompressedImage":
        image = optional_import("PIL.Image", extra="formats")
        return np.asarray(image.open(io.BytesIO(message.data.tobytes())).convert("RGB"))
    if node is message and kind == "JointState":
        node = message.position
    values = np.array(_flat(node), np.float64)
    if part.names:
        order = list(message.name)
        values = values[[order.index(name) for name in part.names]]
    elif kind == "JointState" and len(values) == len(message.name):
        values = values[np.argsort(np.array(message.name, dtype=str), kind="stable")]
    if not len(values):
        raise FlowleapError(f"holds no numbers ({part.topic})")
    return values.astype(np.float32)


def _flat(node: Any) -> list[float]:
    """All numbers of a message, in the order of its definition; headers and texts are left out."""
    if isinstance(node, _NUMBERS):
        return [float(node)]
    if isinstance(node, np.ndarray):
        return [float(x) for x in node.ravel()]
    if isinstance(node, list | tuple):
        return [x for item in node for x in _flat(item)]
    parts = vars(node) if hasattr(node, "__dict__") else {}
    skipped = ("header", "layout", "__msgtype__")
    return [x for name, item in parts.items() if name not in skipped for x in _flat(item)]


def _picture(message: Any) -> NDArray[np.uint8]:
    """sensor_msgs/Image -> uint8 [H, W, 3]."""
    channels = _CHANNELS.get(message.encoding)
    if channels is None:
        raise FlowleapError(f"has images of encoding '{message.encoding}', read are {', '.join(_CHANNELS)}")
    rows = np.asarray(message.data, np.uint8).reshape(message.height, message.step)
    pixels = rows[:, : message.width * len(channels)].reshape(message.height, message.width, len(channels))
    order = [channels.index(c) for c in "RGB"] if len(channels) > 1 else [0, 0, 0]
    return np.ascontiguousarray(pixels[..., order])
