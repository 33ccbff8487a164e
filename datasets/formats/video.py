"""Frames of mp4 files through PyAV: which of them belong to the rows of a table, reading and writing them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowleap.policy.core.errors import FlowleapError, optional_import

_ENCODERS = ("libx264", "libsvtav1", "libopenh264", "mpeg4")  # the first that this PyAV was built with
_RATE = 0.02  # share by which a video's rate may differ from the stated one
_NEAR = 0.5  # frames by which a time stamp may be off before it means another frame
_EARLY = 0.25  # frames before it is shown from which a frame counts as shown: times are rounded


class Clip(NamedTuple):
    """Where the frames of an episode are said to be.

    Attributes:
        file: the video.
        start, end: seconds from its beginning, by the metadata; `end` is 0 where they do not say.
        before: rows of the episodes that come before this one in the file.
        total: rows of all episodes in the file.
    """

    file: Path
    start: float
    end: float
    before: int
    total: int


class Clock(NamedTuple):
    """When the frames of a video are shown: `ticks` int64 [F], increasing, each of `second` seconds."""

    ticks: NDArray[np.int64]
    second: float

    @property
    def times(self) -> NDArray[np.float64]:
        """Seconds since the first frame, [F]."""
        return (self.ticks - self.ticks[0]) * self.second


def read_clock(file: Path) -> Clock:
    """Read when the frames of a video are shown, without decoding them.

    Raises:
        FlowleapError: the file is damaged or has no frames. The message does not name the file.
    """
    av = optional_import("av", extra="formats")
    try:
        with av.open(str(file.absolute())) as container:
            if not container.streams.video:
                raise FlowleapError("has no video stream")
            stream = container.streams.video[0]
            packets = container.demux(stream)
            ticks = [packet.pts for packet in packets if packet.pts is not None and not packet.is_discard]
            second = float(stream.time_base)
    except (av.error.FFmpegError, ValueError) as error:
        raise FlowleapError(f"is damaged ({error})") from error
    if not ticks:
        raise FlowleapError("is a video without frames")
    return Clock(np.unique(np.array(ticks, np.int64)), second)


def frames_of_rows(
    clock: Clock, clip: Clip, frames: NDArray[np.int64], stamps: NDArray[np.float64], fps: float
) -> NDArray[np.int64]:
    """Say which frames of a video, by number, belong to the rows of an episode, [T].

    Rows are counted, since their time stamps are often those of a robot's or a wall clock. A video with as many frames
    as rows has a frame for each. In others, frames are counted from where the metadata say that the episode begins;
    only where the video has another rate, and lasts as long as the table, they are found by time.

    Args:
        clock: when the frames of the video are shown.
        clip: where they are said to be.
        frames: numbers of the rows in their episode, int64 [T], increasing.
        stamps: time stamps of the rows, [T] seconds of whatever clock.
        fps: rows per second.

    Raises:
        FlowleapError: frames are missing, or counts and clocks leave open which frames belong to the rows.
    """
    rows, count, times = len(frames), len(clock.ticks), clock.times
    rate = (count - 1) / times[-1] if count > 1 else fps
    as_stated = abs(rate / fps - 1) <= _RATE
    given = round((clip.end - clip.start) * fps) if clip.end and as_stated else None
    if count == clip.total and given in (None, rows):
        return clip.before + np.arange(rows)
    found = f"has {count} frames at {rate:.4g} a second for {clip.total} rows at {fps:g} a second"
    if not as_stated:
        if abs(count / rate - clip.total / fps) > 1 / min(rate, fps):
            raise FlowleapError(f"{found}: which belong to which cannot be known")
        shown = np.searchsorted(times, clip.start + frames / fps + _EARLY / rate, side="right")
        return np.maximum(shown - 1, 0)
    if np.any(np.abs((stamps - stamps[0]) * fps - (frames - frames[0])) > _NEAR):
        raise FlowleapError(f"{found}, and the time stamps do not say which belong to which")
    first = int(np.abs(times - clip.start).argmin())
    left = max(0, count - max(first, round(clip.start * fps)))
    have = left if given is None else min(given, left)
    if frames[0] < 0 or frames[-1] >= have:
        raise FlowleapError(f"has {have} frames of the episode, its table {rows} rows")
    return first + frames


def read_frames(
    file: Path, ticks: NDArray[np.int64], shape: tuple[int, ...], pixels: str = "rgb24"
) -> NDArray[Any]:
    """Decode the frames shown at `ticks` (see `Clock`, [T], not decreasing): [T, *shape].

    `shape` is (height, width, 3) for uint8 `rgb24`, (height, width, 1) for uint16 `gray12le`.

    Raises:
        FlowleapError: the file is damaged or has frames of another size. The message does not name the file.
    """
    av = optional_import("av", extra="formats")
    frames = np.empty((len(ticks), *shape), np.uint8 if pixels == "rgb24" else np.uint16)
    found = 0
    try:
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            # Where a key frame is shown after frames that follow it in the file, all are decoded.
            for start in (int(ticks[0]), 0):
                container.seek(start, stream=stream)
                for frame in container.decode(stream):
                    if frame.pts is None or frame.pts < ticks[found]:
                        continue
                    if frame.pts > ticks[found]:
                        break
                    size = (frame.height, frame.width)
                    if size != shape[:2]:
                        raise FlowleapError(f"has frames of {size} pixels, the table says {shape[:2]}")
                    until = int(np.searchsorted(ticks, frame.pts, side="right"))
                    frames[found:until] = frame.to_ndarray(format=pixels).reshape(shape)
                    found = until
                    if found == len(ticks):
                        return frames
    except (av.error.FFmpegError, ValueError) as error:
        raise FlowleapError(f"is damaged after {found} frames ({error})") from error
    raise FlowleapError(f"is damaged: only {found} of {len(ticks)} frames can be decoded")


def write_frames(file: Path, frames: NDArray[np.uint8], fps: float) -> str:
    """Encode frames [T, height, width, 3] (rgb, even height and width), lossy; return the codec's name."""
    av = optional_import("av", extra="formats")
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise FlowleapError(f"a video needs even height and width, not {height} x {width}: say video=false")
    encoder = next(name for name in _ENCODERS if name in av.codecs_available)
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file.absolute()), "w") as container:
        stream = container.add_stream(encoder, rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if encoder in ("libsvtav1", "libx264"):
            stream.options = {"g": "2", "crf": "23"}  # short groups: any frame is near a key frame
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
        return str(stream.codec_context.codec.canonical_name)
