"""Windows over episodes: which frames belong to one training sample.

The window of frame t holds the observations of frames t-To+1 .. t, clamped at the episode's first frame, and
the actions of frames t .. t+H-1, clamped at its last. There is one window a frame, so the index of a window
is the index of its current frame, and no window crosses an episode boundary.

Nothing is stored per window: a batch is one `take` for all low-dim observations (they lie side by side in one
array) and one for the actions. This is fast enough that training needs no loader processes. Images are gathered as
uint8, points as floats, from memory or from the disk (`frames.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowleap.datasets.columns import ACTION, Columns
from flowleap.policy.core.errors import FlowleapError, suggest
from flowleap.policy.core.spec import Spec, SpecMismatch


class Windows:
    """All windows of a set of episodes, held in memory but for large images.

    Args:
        columns: key -> [N, *shape], flat over all frames; holds `action` and every observation key of `spec`
            (further keys are not read). Low-dim columns are copied, those of images and points are referenced and may
            be `frames.Frames`.
        episode_ends: [E], the frame after each episode's last one.
        spec: the keys to read, their shapes, To and H.
        image_frames: how many of the To frames, the latest ones, windows hold of images and points; None is all. What
            an encoder does not look at need not be read.

    Attributes:
        spec, episode_ends: as given.
        columns: those that the Spec names, as given: what a normaliser is fitted on.
        n_frames: frames of all episodes, and as many windows.

    Raises:
        SpecMismatch: a column is missing, or its shape or kind is not the Spec's.
        FlowleapError: the lengths of columns and episodes differ.
    """

    def __init__(
        self, columns: Columns, episode_ends: ArrayLike, spec: Spec, image_frames: int | None = None
    ) -> None:
        ends = np.asarray(episode_ends, dtype=np.int64)
        if ends.ndim != 1 or len(ends) == 0 or np.any(np.diff(ends, prepend=0) < 1):
            raise FlowleapError("episode_ends must be a non-empty list of increasing frame counts")
        self.spec, self.episode_ends, self.n_frames = spec, ends, int(ends[-1])
        self._check(columns)

        lengths = np.diff(ends, prepend=0)
        self._first = np.repeat(ends - lengths, lengths)  # [N]: first and last frame of each frame's episode
        self._last = np.repeat(ends - 1, lengths)
        self._obs_offsets = np.arange(1 - spec.n_obs_steps, 1)
        self._dense_steps = slice(-(image_frames or spec.n_obs_steps), None)
        self._action_offsets = np.arange(spec.horizon)

        self.columns = {key: columns[key] for key in (*spec.observations, ACTION)}
        self._dense = {key: self.columns[key] for key, obs in spec.observations.items() if obs.dense}
        self._slices: dict[str, slice] = {}  # key -> its share of the last axis of `_lowdim`
        width = 0
        for key, obs in spec.observations.items():
            if obs.kind == "lowdim":
                self._slices[key] = slice(width, width + obs.size)
                width += obs.size
        self._lowdim = np.empty((self.n_frames, width), dtype=np.float32)
        for key, share in self._slices.items():
            self._lowdim[:, share] = columns[key].reshape(self.n_frames, -1)
        self._action = np.ascontiguousarray(columns[ACTION], dtype=np.float32)

    def __len__(self) -> int:
        """Number of windows: one a frame."""
        return self.n_frames

    def gather(self, index: NDArray) -> dict[str, Any]:
        """Return the windows `index` (integers [B]) as fresh arrays.

        Returns:
            `{"obs": {key: [B, To, *shape]}, "action": [B, H, A]}`, float32, rgb uint8 (of images and points, the
            latest `image_frames` of To). The low-dim keys are views of one array.
        """
        current = index[:, None]
        obs_rows = np.maximum(current + self._obs_offsets, self._first.take(index)[:, None])
        action_rows = np.minimum(current + self._action_offsets, self._last.take(index)[:, None])
        flat = self._lowdim.take(obs_rows, axis=0)  # [B, To, sum of sizes]
        obs: dict[str, NDArray] = {}
        for key, spec in self.spec.observations.items():
            if key in self._dense:
                frames = self._dense[key].take(obs_rows[:, self._dense_steps], axis=0)
                obs[key] = frames if spec.image else frames.astype(np.float32, copy=False)
            else:
                obs[key] = flat[..., self._slices[key]].reshape(*obs_rows.shape, *spec.shape)
        return {"obs": obs, "action": self._action.take(action_rows, axis=0)}

    def describe_dense(self) -> dict[str, str]:
        """Key of images or points -> how large the column is and where it is, for people."""
        return {
            key: f"{column.nbytes / 2**20:.0f} MB {column.dtype} in memory"
            if isinstance(column, np.ndarray)
            else column.describe()
            for key, column in self._dense.items()
        }

    def _check(self, columns: Columns) -> None:
        """Raise unless every column that the Spec names is there with its shape, kind and length."""
        expected: dict[str, tuple[int, ...]] = {k: tuple(o.shape) for k, o in self.spec.observations.items()}
        expected[ACTION] = (self.spec.action_dim,)
        for key, shape in expected.items():
            if key not in columns:
                raise SpecMismatch(f"no column '{key}' among {sorted(columns)}{suggest(key, columns)}")
            column = columns[key]
            name = f"column '{key}'"
            if column.shape[1:] != shape:
                raise SpecMismatch(f"{name} has shape {column.shape[1:]} a frame, the Spec says {shape}")
            if len(column) != self.n_frames:
                raise FlowleapError(
                    f"{name} has {len(column)} frames, but the episodes end at {self.n_frames}"
                )
            obs = None if key == ACTION else self.spec.observations[key]
            dtype = {"rgb": np.uint8, "depth": np.float32}.get(obs.kind if obs else "")
            if obs and obs.kind == "points" and column.dtype.kind != "f":
                raise SpecMismatch(f"{name} is points and must be floats, not {column.dtype}")
            if obs and dtype and column.dtype != dtype:
                wrong = f"is {obs.kind} and must be {np.dtype(dtype)}, not {column.dtype}"
                raise SpecMismatch(f"{name} {wrong}; rewrite the dataset with `flowleap convert`")
