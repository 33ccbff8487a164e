"""Frames of mp4 files through PyAV: read by time stamp, written one file an episode."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flowleap.policy.core.errors import FlowleapError, optional_import

_ENCODERS = ("libx264", "libsvtav1", "libopenh264", "mpeg4")  # the first that this PyAV was built with
_TOLERANCE = 0.45  # of the time between two frames: below a half, so that no frame fits two time stamps


def read_frames(
    file: Path, times: NDArray[np.float64], fps: float, shape: tuple[int, ...]
) -> NDArray[np.uint8]:
    """Decode the frames shown at `times`, [T] increasing seconds from the beginning: uint8 rgb [T, *shape].

    `fps`, frames per second, sets how far a frame may be from its time; `shape` is (height, width, 3).

    Raises:
        FlowleapError: the file is damaged, has frames of another size, or none at one of the times. The message does
            not name the file.
    """
    av = optional_import("av", extra="formats")
    frames = np.empty((len(times), *shape), np.uint8)
    tolerance = _TOLERANCE / fps
    found = 0
    try:
        with av.open(str(file.absolute())) as container:
            if not container.streams.video:
                raise FlowleapError("has no video stream")
            stream = container.streams.video[0]
            container.seek(max(0, int((times[0] - tolerance) / stream.time_base)), stream=stream)
            for frame in container.decode(stream):
                time = float(frame.pts * frame.time_base)
                if time > times[found] + tolerance:
                    break
                if time < times[found] - tolerance:
                    continue
                size = (frame.height, frame.width)
                if size != shape[:2]:
                    raise FlowleapError(f"has frames of {size} pixels, the table says {shape[:2]}")
                frames[found] = frame.to_ndarray(format="rgb24")
                found += 1
                if found == len(times):
                    return frames
    except (av.error.FFmpegError, ValueError) as error:
        raise FlowleapError(f"is damaged after {found} frames ({error})") from error
    raise FlowleapError(
        f"has no frame at {times[found]:.3f} s: {found} of {len(times)} frames are there; it is shorter than the "
        "table, or has another frame rate"
    )


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
