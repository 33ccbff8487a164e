"""Films of episodes that failed: run again with the renderer on, small enough to lie inside of a page."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flowleap.datasets.quality.web_page import data_uri, jpeg
from flowleap.envs.rendering import film_strip, save_video
from flowleap.envs.rollout import Episode
from flowleap.envs.run_report.results import Evaluation
from flowleap.policy.core.errors import FlowleapError

_SIDE = 240  # px, the longer side of a video
_FRAMES = 160  # of a video, at most
_STILLS = 6  # of a strip
_STRIP = (1200, 240)  # px

Record = Callable[[int], tuple[np.ndarray, Episode]]
"""Seed -> frames uint8 [T + 1, height, width, 3], and what came of the episode."""


@dataclass(frozen=True)
class Film:
    """One episode: its film strip `still`, and its `video` with a `poster`, empty where there is none; data URIs."""

    caption: str
    alt: str
    still: str
    video: str = ""
    poster: str = ""


@dataclass
class Gallery:
    """The failures of one evaluation.

    Attributes:
        title: whose they are.
        films: a few of them.
        note: what is shown, and why not more.
        left: bytes that further films may take.
    """

    title: str
    films: list[Film] = field(default_factory=list)
    note: str = ""
    left: int = 0


def failures(evaluation: Evaluation) -> list[Mapping[str, Any]]:
    """The rows of failed episodes, those with the lowest best reward first, and of equal ones the first seed."""
    failed = [row for row in evaluation.data.get("rows", ()) if not row["success"]]
    return sorted(failed, key=lambda row: (row["max_reward"], row["seed"]))


def gallery(
    title: str, evaluation: Evaluation, record: Record, hz: float, count: int, budget: int
) -> Gallery:
    """Film the first `count` of the `failures`; together they take no more than `budget` bytes.

    Without the packages of the extra `video`, and where the budget ends, there are film strips in place of videos. If
    the simulator does not render, the note says why.
    """
    failed = failures(evaluation)
    made = Gallery(title, left=budget)
    made.note = (
        f"{len(failed)} of {evaluation.episodes} episodes failed"
        + (", those with the lowest reward first" if failed else "")
        + f"; NFE {evaluation.nfe}."
    )
    for row in failed[:count]:
        try:
            frames, episode = record(row["seed"])
        except FlowleapError as error:
            made.note += f" No pictures: {error}."
            break
        film = _film(row, episode, frames, hz, made)
        if not film:
            made.note += " The page has no room for more (megabytes=...)."
            break
        made.films.append(film)
    return made


def _film(
    row: Mapping[str, Any], episode: Episode, frames: np.ndarray, hz: float, made: Gallery
) -> Film | None:
    caption = f"seed {row['seed']}, {episode.length} steps, best reward {episode.max_reward:.3g}"
    if (episode.success, episode.max_reward) != (row["success"], row["max_reward"]):
        caption += (
            f"; went otherwise than when it was scored (best reward {row['max_reward']:.3g}): "
            "other versions, or batched"
        )
    alt = f"failed episode of seed {row['seed']}"
    still = jpeg(film_strip(frames, _STILLS), *_STRIP)
    if len(still) > made.left:
        return None
    made.left -= len(still)
    try:
        video = _video(frames, hz)
    except FlowleapError as error:  # no imageio
        if str(error) not in made.note:
            made.note += f" Film strips in place of videos: {error}."
        return Film(caption, alt, still)
    poster = jpeg(frames[-1], _SIDE, _SIDE)
    if len(video) + len(poster) > made.left:
        return Film(caption, alt, still)
    made.left -= len(video) + len(poster)
    return Film(caption, alt, still, video, poster)


def _video(frames: np.ndarray, hz: float) -> str:
    """A small video, in real time, as a data URI."""
    every = -(-len(frames) // _FRAMES)
    with tempfile.TemporaryDirectory() as folder:
        path = save_video(Path(folder) / "film.mp4", _smaller(frames[::every]), fps=(hz or 10) / every)
        return data_uri("video/mp4", path.read_bytes())


def _smaller(frames: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    from PIL import Image

    shrunk = []
    for frame in frames:
        picture = Image.fromarray(frame)
        picture.thumbnail((_SIDE, _SIDE))
        shrunk.append(np.asarray(picture))
    return np.stack(shrunk)
