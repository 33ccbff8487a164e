"""Record episodes of a policy side by side, as the README's moving picture.

python docs/rollouts.py RUN_DIR docs/images/pusht.gif      seeds from 100000, one network call a chunk
"""

from __future__ import annotations

import sys

import numpy as np
from PIL import Image

from flowleap.envs.actors import load_actor
from flowleap.envs.registry import make_task
from flowleap.envs.rendering import save_video
from flowleap.envs.rollout import record_episode

EPISODES = 4
SIZE = 200  # pixels of one episode
FPS = 10
HOLD = 15  # frames that the end of the longest episode stays


def main(checkpoint: str, out: str) -> None:
    """Record the first seeds, whatever comes of them, and write one GIF."""
    loaded = load_actor(checkpoint, steps=1)
    assert loaded.task is not None
    task = make_task(loaded.task["name"], **loaded.task.get("kwargs", {}))
    films = []
    for seed in range(100_000, 100_000 + EPISODES):
        frames, episode = record_episode(task, loaded.act, loaded.spec, seed)
        print(f"seed {seed}: {len(frames) - 1} actions, best reward {episode.max_reward:.2f}")
        films.append(
            [np.asarray(Image.fromarray(f).resize((SIZE, SIZE), Image.Resampling.BOX)) for f in frames]
        )
    length = max(len(film) for film in films) + HOLD
    films = [film + [film[-1]] * (length - len(film)) for film in films]
    rows = np.stack([np.concatenate(moment, axis=1) for moment in zip(*films, strict=True)])
    if out.endswith(".gif"):  # few colours: a small file
        rows = np.stack([_few_colours(row) for row in rows[:: 2 if length > 200 else 1]])
    print(save_video(out, rows, FPS))


def _few_colours(image: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(image).quantize(24, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    return np.asarray(picture.convert("RGB"))


if __name__ == "__main__":
    main(*sys.argv[1:3])
