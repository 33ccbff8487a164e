"""The numbers behind `flowleap inspect`: statistics of every column, and what a network is shown of them.

Episodes are read one after the other and only sums stay, so the memory does not grow with the dataset. Of images and
points a sample is read: up to `image_episodes` episodes, spread evenly, and up to 64 frames of each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets.columns import ACTION
from flowleap.datasets.images import NoImages, plain_inputs
from flowleap.datasets.interface import Dataset
from flowleap.datasets.quality.checks import Checks, Finding, Idle, some
from flowleap.datasets.windows import Windows
from flowleap.policy.core.spec import ObsKey, Spec

BINS = 48
_HISTOGRAMS = 64  # dimensions of a column that get one
_IMAGE_FRAMES = 64
_FLAT_IMAGES = "a network of plain numbers does not find in another place what it has seen in one"
_SAMPLE = 20_000  # frames, the first ones of each episode, that tell noise from motion
_CORE = 0.99  # share of the frames ...
_SQUEEZED = 0.1  # ... that lie within this share of the range, where ...
_STRAY = 3  # ... at most so many frames reach its ends: then outliers set the range
_OUTLIERS = "a few outliers set the range, so all else is normalised to nearly one number:"


@dataclass
class Statistics:
    """Statistics of one column over all frames, or over those that were read of images and points.

    Attributes:
        column: shape and kind of the column.
        low, high, mean, std: float64 [size]; of images and points [channels]. Infinite where no value is finite.
        not_finite: how many numbers are NaN or infinite; they are left out of the others.
        histogram: int64 [dimensions, BINS] between `low` and `high`, of the first dimensions.
    """

    column: ObsKey
    low: NDArray
    high: NDArray
    mean: NDArray
    std: NDArray
    not_finite: int
    histogram: NDArray = field(default_factory=lambda: np.zeros((0, BINS), np.int64))

    @property
    def constant(self) -> list[int]:
        """Flat indices of the dimensions with one value in all frames."""
        return [int(i) for i in np.flatnonzero(self.low == self.high)]

    @property
    def overall(self) -> tuple[float, float]:
        """Mean and standard deviation over all numbers, as if each dimension had equally many finite ones."""
        mean = float(self.mean.mean())
        return mean, float(np.sqrt(np.mean(self.std**2 + (self.mean - mean) ** 2)))


class Profile:
    """Statistics of all columns, with the episodes worth looking at.

    Args:
        source: the dataset.
        checks: the pass over it that found the ranges.
        window: To, H and Ta that training would use.
        image_episodes: episodes whose images are read; 0 reads those of all.

    Attributes:
        columns: key -> statistics.
        spec: what a policy trained on the low-dim keys would be told, with the window.
        median: an episode of median length.
        shown: a few episodes: median, shortest, longest, and the first one that a finding names.
        image_episodes: the episodes whose images were read.
        findings: what only the second pass tells: idle stretches, outliers that set the range, noise that normalising
            would amplify, cameras that stand still.
    """

    def __init__(
        self, source: Dataset, checks: Checks, window: tuple[int, int, int], image_episodes: int = 32
    ) -> None:
        self._source, self.lengths = source, checks.lengths
        self._checks = checks
        order = np.argsort(checks.lengths, kind="stable")
        shown = [order[0], order[len(order) // 2], order[-1], *checks.suspects[:1]]
        self.median = int(shown[1])
        self.shown = list(dict.fromkeys([self.median, *(int(i) for i in shown)]))
        n = source.n_episodes
        chosen = np.linspace(0, n - 1, min(image_episodes or n, n))
        self.image_episodes = sorted({int(i) for i in chosen.round()})
        self._frozen: dict[str, list[int]] = {}
        self._unreadable: dict[str, str] = {}  # camera -> why, of those with frames that are no images
        self._broken: dict[str, list[int]] = {}
        self._idle = Idle(checks)
        self._sample: dict[str, list[NDArray]] = {}
        lowdim = self._lowdim()
        images = {key: self._images(key) for key, column in source.fields.items() if column.dense}
        self.columns = {key: lowdim.get(key) or images[key] for key in source.fields}
        self.spec = self._spec(window)
        self.findings = [*self._idle.findings(), *self._outliers(), *self._noise(), *self._cameras()]

    def _lowdim(self) -> dict[str, Statistics]:
        """Second pass: mean, deviation and histogram, now that the ranges are known."""
        extremes = self._checks.extremes
        keys = list(extremes)
        centre = {key: np.where(np.isfinite(e.low), (e.low + e.high) / 2, 0.0) for key, e in extremes.items()}
        counts, sums, squares = ({key: np.zeros(len(c)) for key, c in centre.items()} for _ in range(3))
        bins = {key: np.zeros((min(len(c), _HISTOGRAMS), BINS), np.int64) for key, c in centre.items()}
        sampled = max(1, _SAMPLE // self._source.n_episodes)  # frames of each episode
        for index in range(self._source.n_episodes):
            episode = self._source.episode(index, keys)
            self._idle.add(index, episode)
            for key, values in episode.items():
                self._sample.setdefault(key, []).append(values[:sampled])
                # Around the middle of the range: sums of squares of large offsets would lose the deviation.
                flat = values.reshape(len(values), -1).astype(np.float64) - centre[key]
                finite = np.isfinite(flat)
                counts[key] += finite.sum(axis=0)
                sums[key] += flat.sum(axis=0, where=finite)
                squares[key] += np.square(flat).sum(axis=0, where=finite)
                _count(bins[key], flat, (extremes[key].high - extremes[key].low) / 2)
        found = {}
        for key, e in extremes.items():
            n = np.maximum(counts[key], 1)
            mean, std = sums[key] / n, np.sqrt(np.maximum(squares[key] / n - (sums[key] / n) ** 2, 0))
            column, bad = self._source.fields[key], self._checks.not_finite[key]
            found[key] = Statistics(column, e.low, e.high, mean + centre[key], std, bad, bins[key])
        return found

    def _images(self, key: str) -> Statistics:
        """Statistics a channel, over a sample of frames."""
        column = self._source.fields[key]
        low, high = np.full(column.shape[-1], np.inf), np.full(column.shape[-1], -np.inf)
        sums, squares, count, not_finite = np.zeros(len(low)), np.zeros(len(low)), 0, 0
        for index in self.image_episodes:
            frames = self.frames(index, key, _IMAGE_FRAMES)
            if len(frames) > 1 and np.array_equal(frames, np.broadcast_to(frames[:1], frames.shape)):
                self._frozen.setdefault(key, []).append(index)
            for frame in frames:
                pixels = frame.reshape(-1, len(low)).astype(np.float64)
                finite = np.isfinite(pixels).all(axis=1)
                if not finite.all() and index not in self._broken.setdefault(key, []):
                    self._broken[key].append(index)
                not_finite += int((~finite).sum())
                pixels = pixels[finite]
                low = np.minimum(low, pixels.min(axis=0, initial=np.inf))
                high = np.maximum(high, pixels.max(axis=0, initial=-np.inf))
                sums += pixels.sum(axis=0)
                squares += np.square(pixels).sum(axis=0)
                count += len(pixels)
        mean, square = sums / max(count, 1), squares / max(count, 1)
        return Statistics(column, low, high, mean, np.sqrt(np.maximum(square - mean**2, 0)), not_finite)

    def frames(self, index: int, key: str, most: int) -> NDArray:
        """Read up to `most` frames of an episode, spread evenly from first to last; none of what is no image."""
        try:
            return self._source.episode(index, [key])[key][self.places(index, most)]
        except NoImages as error:
            self._unreadable.setdefault(key, error.problem)
            if index not in self._broken.setdefault(key, []):
                self._broken[key].append(index)
            return np.empty((0, *self._source.fields[key].shape), self._source.fields[key].dtype)

    def places(self, index: int, most: int) -> NDArray[np.int64]:
        """The frames that `frames` takes."""
        length = int(self.lengths[index])
        return np.linspace(0, length - 1, min(most, length)).round().astype(np.int64)

    def _spec(self, window: tuple[int, int, int]) -> Spec | None:
        """The low-dim keys that have finite values; None if there are none, or the actions have none."""
        lowdim = {key: s for key, s in self.columns.items() if s.column.kind == "lowdim"}
        usable = {key for key, s in lowdim.items() if np.isfinite(s.low).all()}
        observations = {k: o for k, o in self._source.spec.observations.items() if k in usable}
        if not observations or ACTION not in usable:
            return None
        return Spec(observations, self._source.spec.action_dim).with_window(*window)

    @cached_property
    def normalized(self) -> dict[str, tuple[NDArray, NDArray]]:
        """Mean and deviation of each dimension after training's default normalisation (range to [-1, 1])."""
        found = {}
        for key in self._network_keys():
            s = self.columns[key]
            mean, above = (self._normalize(key, v.reshape(s.column.shape)) for v in (s.mean, s.mean + s.std))
            found[key] = (mean.ravel(), (above - mean).ravel())
        return found

    def window(self, index: int) -> dict[str, NDArray]:
        """The window in the middle of an episode as the network gets it.

        Returns:
            key -> [To, size], `action` -> [H, A], normalised to [-1, 1].
        """
        if self.spec is None:
            return {}
        columns = self._source.episode(index, self._network_keys())
        windows = Windows(columns, [len(columns[ACTION])], self.spec)
        batch = windows.gather(np.array([len(windows) // 2]))
        parts = {**{key: values[0] for key, values in batch["obs"].items()}, ACTION: batch["action"][0]}
        return {key: self._normalize(key, values).reshape(len(values), -1) for key, values in parts.items()}

    def padded(self) -> tuple[float, float]:
        """Share of windows that repeat a first observation, and of those that repeat a last action."""
        if self.spec is None:
            return 0.0, 0.0
        steps = (self.spec.n_obs_steps - 1, self.spec.horizon - 1)
        early, late = (float(np.minimum(self.lengths, n).sum() / self.lengths.sum()) for n in steps)
        return early, late

    def _network_keys(self) -> list[str]:
        return [] if self.spec is None else [*self.spec.observations, ACTION]

    @cached_property
    def _normalizer(self) -> Any:
        from flowleap.policy.normalizer import Normalizer

        assert self.spec is not None
        normalizer = Normalizer(self.spec)
        statistics = {key: self.columns[key] for key in self._network_keys()}
        # A min-max fit takes the ranges from a column, and from neighbouring frames whether it is noise.
        rows = {}
        for key, s in statistics.items():
            ranges = np.stack([s.low, s.high]).reshape(2, *s.column.shape)
            sample = np.concatenate([ranges, *self._sample[key]])
            rows[key] = sample[np.isfinite(sample.reshape(len(sample), -1)).all(axis=1)]
        normalizer.fit(rows)
        return normalizer

    def _noise(self) -> list[Finding]:
        """Dimensions that move so little that training does not scale them up."""
        found = []
        for key in self._network_keys():
            s = self.columns[key]
            noise = [dim for dim in self._normalizer.noise[key] if s.low[dim] < s.high[dim]]
            if not noise:
                continue
            spans = [float(s.high[dim] - s.low[dim]) for dim in noise]
            dims = some([str(dim) for dim in noise], 8)
            problem = f"'{key}' moves by {max(spans):.3g} at most in dimensions {dims}: noise, which training does not "
            remedy = f"if it is a signal, train with normalizer.floor={min(spans) / 4:.1g}, or store it in larger units"
            if max(spans) / 2 > self._normalizer.floor:
                remedy = (
                    "each frame is unlike the one before; if it is a signal, store it in a key of its own"
                )
            found.append(Finding(f"{problem}amplify", remedy, note=True))
        return found

    def _normalize(self, key: str, values: NDArray) -> NDArray:
        import torch

        normal = self._normalizer.normalize(key, torch.as_tensor(values, dtype=torch.float64))
        return np.asarray(normal)

    def _outliers(self) -> list[Finding]:
        """Dimensions whose range is set by a few frames far from all others."""
        found = []
        for key in self._network_keys():
            statistics, ends = self.columns[key], self._checks.extremes[key]
            for dim, counts in enumerate(statistics.histogram):
                if counts.sum() < 2 / (1 - _CORE):  # one frame would be more than the tail
                    continue
                low = counts[: BINS // 2].sum() > counts.sum() / 2
                stray = ends.at_high[dim] if low else ends.at_low[dim]
                if stray <= _STRAY and _core(counts) < _SQUEEZED * BINS:
                    core = f"{100 * _CORE:.0f} % of the frames lie in {100 * _core(counts) / BINS:.0f} %"
                    ends_at = f"{statistics.low[dim]:.4g} to {statistics.high[dim]:.4g}"
                    option = f"normalizer.{'action' if key == ACTION else 'obs'}=quantile"
                    problem = f"'{key}' dimension {dim}: {core} of the range {ends_at}"
                    found.append(Finding(problem, f"{_OUTLIERS} repair them, or train with {option}"))
        return found

    def _cameras(self) -> list[Finding]:
        observed = plain_inputs(self._source.spec.observations)
        found = [Finding(f"'{key}': {reason}", _FLAT_IMAGES) for key, reason in observed.items()]
        for key, episodes in self._frozen.items():
            where = some([self._source.label(i) for i in episodes])
            what = "cloud of points" if self.columns[key].column.kind == "points" else "image"
            share = f"{len(episodes)} of {len(self.image_episodes)} episodes: {where}"
            problem = f"camera '{key}' shows one and the same {what} in {share}"
            found.append(
                Finding(problem, f"the camera hung: leave out {self._source.leave_out(episodes, [key])}")
            )
        for key in self.columns:
            if broken := self._broken.get(key):
                where = some([self._source.label(i) for i in broken])
                problem = self._unreadable.get(key, f"'{key}' holds NaN or infinite numbers")
                ways = self._source.leave_out(broken, [key])
                remedy = f"training refuses such frames: leave out {ways}"
                found.append(Finding(f"{problem} (in {len(broken)} episodes: {where})", remedy))
        return found


def _count(bins: NDArray, centred: NDArray, half: NDArray) -> None:
    """Add frames [T, size], less the middle of their range, to the histograms."""
    dims = len(bins)
    values, half = centred[:, :dims], half[:dims]
    with np.errstate(invalid="ignore", divide="ignore"):
        place = (values / np.where(half > 0, half, 1.0) + 1) * (BINS / 2)
    finite = np.isfinite(place)
    cell = np.clip(np.where(finite, place, 0), 0, BINS - 1).astype(np.int64) + BINS * np.arange(dims)
    bins += np.bincount(cell[finite], minlength=BINS * dims).reshape(dims, BINS)


def _core(counts: NDArray) -> int:
    """Number of bins from the first to the last that are needed for the middle `_CORE` of the frames."""
    share = np.cumsum(counts) / max(counts.sum(), 1)
    first = int(np.searchsorted(share, (1 - _CORE) / 2, "right"))
    last = int(np.searchsorted(share, 1 - (1 - _CORE) / 2))
    return last - first + 1
