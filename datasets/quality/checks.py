"""What is suspicious in a dataset: one pass over its low-dim columns, findings as sentences with remedies."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets.columns import ACTION
from flowleap.datasets.interface import Dataset
from flowleap.datasets.quality.repairs import flat
from flowleap.datasets.quality.stillness import Motion, gripper_only, hardly_moving, zero_frames
from flowleap.datasets.quality.survey import ColumnSurvey
from flowleap.datasets.quality.timing import Clocks, Match, Shifts
from flowleap.datasets.roles import no_observation

_CLIPPED = 0.05  # share of frames at the smallest or largest value from which a dimension counts as clipped
_JUMP = 0.5  # share of the range within one frame that is a jump ...
_STEADY = 0.2  # ... unless the episodes' largest steps usually exceed this share of it
_GAP = 1.5  # frame periods between two time stamps that make a gap
_RATE = 0.1  # share by which the rate of the time stamps may differ from the Spec's
_IDLE = 0.1  # share of all frames in idle stretches, or of zero commands, that is worth a word ...
_IDLE_EPISODE = 0.25  # ... and of a single episode
_SHOWN = 5
_CLIPPED_REMEDY = (
    "widen the limits of the recorder if it cut the commands off; if the robot has this limit, all is well"
)
_JUMP_REMEDY = (
    "look at one (flowleap view ... episode={}): if frames were lost or the number is wrong, leave out {}"
)
_WRAP_REMEDY = (
    "a step of the robot becomes a leap for the network: flowleap convert ... fix=[angles] lets the angles go on "
    "beyond the end of their range; feed the policy such angles, too"
)
_FLIP_REMEDY = (
    "q and -q are one rotation, and two for the network: flowleap convert ... fix=[quaternions] keeps to one sign; "
    "feed the policy such quaternions, too"
)
_IDLE_REMEDY = (
    "a policy learns to wait, and may never set off: "
    "flowleap convert ... fix=[idle] leaves one frame of each such stretch"
)


class Finding(NamedTuple):
    """What is suspicious, or, as a `note`, worth knowing; and what to do about it."""

    problem: str
    remedy: str
    note: bool = False


def grouped(findings: Sequence[Finding]) -> list[tuple[list[str], str]]:
    """Put problems with the same remedy together: (problems, remedy), in the order of their first ones."""
    remedies = dict.fromkeys(f.remedy for f in findings)
    return [([f.problem for f in findings if f.remedy == remedy], remedy) for remedy in remedies]


class Checks:
    """The pass over a dataset.

    Attributes:
        lengths: frames of each episode, int64 [E].
        observed: the low-dim keys that are observed.
        survey: what is known of each low-dim column.
        extremes: the range of each low-dim column.
        not_finite: how many numbers of each column are NaN or infinite.
        measured_hz: frames per second by the time stamps; 0 without any.
        findings: empty if nothing is suspicious.
        suspects: episodes that a finding names, in the order of the findings.
    """

    def __init__(self, source: Dataset) -> None:
        columns = source.fields
        keys = [key for key, column in columns.items() if column.kind == "lowdim"]
        self.observed = [key for key in keys if key in source.spec.observations]
        self.survey = {key: ColumnSurvey(columns[key].size) for key in keys}
        self.not_finite: Counter[str] = Counter()
        bad: dict[str, list[int]] = {}
        digests: dict[bytes, list[int]] = {}
        lengths, gaps = [], []
        periods: dict[int, float] = {}  # of the episodes with time stamps: seconds from frame to frame
        disorders: list[tuple[int, str]] = []
        sizes = {key: columns[key].size for key in self.observed}
        shifts = Shifts(sizes, columns[ACTION].size, source.n_episodes)
        clocks = Clocks([key for key in self.observed if no_observation(key) is None])
        for index in range(source.n_episodes):
            episode = source.episode(index, keys)
            digest = hashlib.blake2b(digest_size=16)
            numbers = {key: flat(values) for key, values in episode.items()}
            for key, values in numbers.items():
                if count := int(values.size - np.isfinite(values).sum()):
                    self.not_finite[key] += count
                    bad.setdefault(key, []).append(index)
                self.survey[key].add(index, values)
                digest.update(episode[key].tobytes())
            shifts.add(index, numbers)
            clocks.add(numbers)
            lengths.append(len(episode[ACTION]))
            digests.setdefault(digest.digest(), []).append(index)
            times = source.times(index)
            if problem := source.disorder(index):
                disorders.append((index, problem))
            elif _has_gap(times):
                gaps.append(index)
            if times is not None and len(times) > 1:
                periods[index] = float(np.median(np.diff(times)))
        period = float(np.median(list(periods.values()))) if periods else 0.0
        self.measured_hz = 1.0 / period if period > 0 else 0.0
        self.lengths = np.array(lengths, np.int64)
        self.extremes = {key: column.extremes for key, column in self.survey.items()}
        self.suspects: list[int] = []
        self._source = source
        self.findings = [
            *self._not_finite(bad),
            *self._constants(),
            *self._rotations(),
            *self._actions(),
            *self._shifts(shifts.found(self.survey[ACTION].switches)),
            *(self._clock(key) for key in clocks.found()),
            *self._disorder(disorders),
            *self._times(gaps, [i for i, own in periods.items() if abs(own - period) > _RATE * period > 0]),
            *self._copies([same for same in digests.values() if same[1:]]),
            *self._motionless(),
        ]

    def name(self, episodes: Sequence[int]) -> str:
        """Name episodes in a message, and remember them."""
        self.suspects += episodes[:_SHOWN]
        return some([self._source.label(index) for index in episodes])

    def leave_out(self, episodes: Sequence[int]) -> str:
        """The option that leaves out episodes."""
        return self._source.leave_out(episodes)

    def _not_finite(self, bad: dict[str, list[int]]) -> list[Finding]:
        if not bad:
            return []
        episodes = {index for found in bad.values() for index in found}
        ways = self._source.leave_out(sorted(episodes), list(bad))
        remedy = f"training refuses them: repair the values, or leave out {ways}"
        found = []
        for key, indices in bad.items():
            count = f"{self.not_finite[key]} NaN or infinite numbers in {len(indices)} episodes"
            found.append(Finding(f"'{key}' has {count}: {self.name(indices)}", remedy))
        return found

    def _copies(self, groups: list[list[int]]) -> list[Finding]:
        later = self._source.leave_out([index for same in groups for index in same[1:]])
        remedy = f"copies weigh more in training, and a split may put them on both sides: leave out {later}"
        return [
            Finding(f"the same low-dim data {len(same)} times: {self.name(same)}", remedy) for same in groups
        ]

    def _rotations(self) -> list[Finding]:
        """Angles that wrap and quaternions that flip."""
        found = []
        for key in (*self.observed, ACTION):
            for w in self.survey[key].wraps():
                turn = "2 pi" if w.period < 7 else "360"
                share = f"{w.steps} times, in {len(w.episodes)} of {len(self.lengths)} episodes"
                problem = f"'{key}' dimension {w.dim} is an angle that wraps: it jumps by {turn} {share}"
                found.append(Finding(f"{problem}: {self.name(w.episodes)}", _WRAP_REMEDY))
            for q in self.survey[key].quaternions():
                problem = f"'{key}' dimensions {q.dim} to {q.dim + 3} are a quaternion whose sign flips"
                if q.episodes:
                    many = f"{q.flips} times within {len(q.episodes)} episodes: {self.name(q.episodes)}"
                else:
                    many = f"between episodes, in {len(q.opposed)} of {len(self.lengths)}: {self.name(q.opposed)}"
                found.append(Finding(f"{problem} {many}", _FLIP_REMEDY))
        return found

    def _shifts(self, matches: list[Match]) -> list[Finding]:
        """Actions that are an observation of another frame than the next one."""
        places: dict[tuple[str, int], list[Match]] = {}
        for match in matches:
            places.setdefault((match.key, match.lag), []).append(match)
        found = []
        for (key, lag), same in places.items():
            size, copied = (
                self._source.fields[key].size,
                [m.dim for m in same if m.exact and m.dim == m.obs_dim],
            )
            whole = len(copied) == size == self._source.spec.action_dim
            dims = some([str(match.dim) for match in same], 8)
            when = f"{abs(lag)} frames {'earlier' if lag < 0 else 'later'}" if lag else "of the same frame"
            problem = f"action dimensions {dims} are '{key}' {when}"
            shift = f"flowleap convert ... fix=[shift] takes each action {1 - lag} frame(s) later"
            remedy = f"an action says where the robot is one frame on: {shift}"
            if lag > 1:
                remedy = "is the action meant so far ahead? Else shift it by that many frames when you record"
            if lag == 0 and self.observed != [key]:
                left_out = self._source.leave_out([], [key])
                remedy += f"; if '{key}' is the command itself, leave out {left_out}"
            if whole:
                problem = f"'{key}' repeats the action of its frame exactly"
            found.append(Finding(problem, remedy, note=lag == 0 and not whole))
        return found

    def _clock(self, key: str) -> Finding:
        remedy = f"a policy that sees it acts by the clock: leave out {self._source.leave_out([], [key])}"
        return Finding(f"'{key}' is a frame counter or a time, though its name does not say so", remedy)

    def _motionless(self) -> list[Finding]:
        """Episodes that hardly move, or in which only a gripper does."""
        still, found = hardly_moving(self.survey, [*self.observed, ACTION]), []
        if still:
            remedy = f"they teach a policy to stay where it is: leave out {self.leave_out(still)}"
            many = f"{len(still)} of {len(self.lengths)} episodes: {self.name(still)}"
            found.append(Finding(f"hardly anything moves in {many}", remedy))
        gripping = [index for index in gripper_only(self.survey) if index not in still]
        if gripping:
            remedy = f"is that all of the task? Else leave out {self.leave_out(gripping)}"
            many = f"{len(gripping)} of {len(self.lengths)} episodes: {self.name(gripping)}"
            found.append(Finding(f"only a gripper, or one number of the action, moves in {many}", remedy))
        return found

    def _disorder(self, found: list[tuple[int, str]]) -> list[Finding]:
        """Rows that are out of order or there twice; `found` is episode and problem."""
        if not found:
            return []
        named = self.name([index for index, _ in found])
        problem = (
            f"rows out of order or doubled in {len(found)} episodes: {named}; in the first, {found[0][1]}"
        )
        ways = self.leave_out([index for index, _ in found])
        return [Finding(problem, f"training refuses them: repair the rows, or leave out {ways}")]

    def _times(self, gaps: list[int], odd: list[int]) -> list[Finding]:
        """Gaps between time stamps, episodes of a rate of their own, and a rate other than the Spec's."""
        found = []
        if gaps:
            remedy = "frames were lost: split these episodes there, or resample them to a steady rate"
            found.append(Finding(f"time stamps with gaps in {len(gaps)} episodes: {self.name(gaps)}", remedy))
        if odd:
            problem = (
                f"time stamps of another rate than in the other episodes in {len(odd)}: {self.name(odd)}"
            )
            found.append(Finding(problem, f"resample these episodes, or leave out {self.leave_out(odd)}"))
        stated, measured = self._source.spec.control_hz, self.measured_hz
        if stated and measured and abs(measured / stated - 1) > _RATE:
            problem = f"the time stamps say {measured:.4g} Hz, the Spec says {stated:.4g} Hz"
            found.append(
                Finding(problem, f"correct the Spec: flowleap convert ... control_hz={measured:.4g}")
            )
        return found

    def _actions(self) -> list[Finding]:
        """Clipped and jumping dimensions."""
        found, frames, column = [], int(self.lengths.sum()), self.survey[ACTION]
        extreme, steps, wrapping = column.extremes, column.steps, {wrap.dim for wrap in column.wraps()}
        for i in range(len(extreme.low)):
            span = extreme.high[i] - extreme.low[i]
            if not span > 0 or column.switches[i]:
                continue
            name = f"action dimension {i}"
            for count, value in ((extreme.at_low[i], extreme.low[i]), (extreme.at_high[i], extreme.high[i])):
                if count > 1 and count / frames > _CLIPPED:
                    problem = f"{name} is clipped: {value:.4g} in {100 * count / frames:.0f} % of frames"
                    found.append(Finding(problem, _CLIPPED_REMEDY))
            jumping = np.flatnonzero(steps[:, i] > _JUMP * span).tolist()
            if jumping and np.median(steps[:, i]) < _STEADY * span and i not in wrapping:
                problem = f"{name} jumps by more than half its range in {len(jumping)} episodes: {self.name(jumping)}"
                ways = self.leave_out(jumping)
                found.append(Finding(problem, _JUMP_REMEDY.format(jumping[0], ways)))
        return found

    def _constants(self) -> list[Finding]:
        found = []
        for key in (*self.observed, ACTION):
            extreme = self.extremes[key]
            # A turn around one axis has zeros in its quaternion.
            axis = self.survey[key].rotation_dims
            constant = [i for i in np.flatnonzero(extreme.low == extreme.high).tolist() if i not in axis]
            if not constant:
                continue
            which = "" if len(extreme.low) == 1 else f" in dimensions {some([str(i) for i in constant], 8)}"
            remedy = "it tells the policy nothing; check its sensor"
            if key == ACTION:
                remedy = "the policy will repeat this number; record again if the joint was meant to move"
            elif len(constant) == len(extreme.low):
                remedy += f", or leave out {self._source.leave_out([], [key])}"
            found.append(Finding(f"'{key}' is constant{which}", remedy))
        return found


class Idle:
    """The second pass: idle stretches and commands that are zero, now that it is known how far all usually moves."""

    def __init__(self, checks: Checks) -> None:
        self._checks = checks
        self._motion = Motion(checks.survey, [*checks.observed, ACTION])
        action = checks.survey[ACTION]
        self._moving = (action.extremes.high > action.extremes.low) & ~action.switches
        self._places: dict[str, list[int]] = {"at the start": [], "in the middle": [], "at the end": []}
        self._frames: dict[int, int] = {}  # episode -> idle frames
        self._zero: dict[int, int] = {}

    def add(self, index: int, episode: Mapping[str, NDArray]) -> None:
        """Take an episode, key -> [T, ...]."""
        length = len(episode[ACTION])
        stretches = self._motion.stretches(episode)
        for first, last in stretches:
            if last - first < length:  # else it hardly moves, which has a finding of its own
                place = "at the start" if first == 0 else "at the end" if last == length else "in the middle"
                self._places[place].append(index)
                self._frames[index] = self._frames.get(index, 0) + last - first
        if self._moving.any():
            self._zero[index] = zero_frames(episode[ACTION], self._moving)

    def findings(self) -> list[Finding]:
        """What is worth a word."""
        found = []
        if self._many(self._frames):
            places = ", ".join(
                f"{place} of {len(set(where))} episodes ({self._checks.name(sorted(set(where)))})"
                for place, where in self._places.items()
                if where
            )
            found.append(
                Finding(f"nothing moves in {self._share(self._frames)} of the frames: {places}", _IDLE_REMEDY)
            )
        if self._many(self._zero):
            where = [index for index, frames in self._zero.items() if frames]
            problem = f"the action is 0 for long, in {self._share(self._zero)} of the frames, in {len(where)} episodes"
            remedy = (
                "if the robot stands still meanwhile, flowleap convert ... fix=[idle] cuts it; if it moves, commands "
                f"were lost: leave out {self._checks.leave_out(where)}"
            )
            found.append(Finding(f"{problem}: {self._checks.name(where)}", remedy))
        return found

    def _many(self, frames: Mapping[int, int]) -> bool:
        lengths = self._checks.lengths
        most = max((count / lengths[index] for index, count in frames.items()), default=0.0)
        return bool(sum(frames.values()) > _IDLE * lengths.sum() or most > _IDLE_EPISODE)

    def _share(self, frames: Mapping[int, int]) -> str:
        return f"{100 * sum(frames.values()) / self._checks.lengths.sum():.2g} %"


def _has_gap(times: NDArray | None) -> bool:
    """Whether two neighbouring time stamps are farther apart than frames usually are."""
    if times is None or len(times) < 3:
        return False
    periods = np.diff(times)
    return bool(np.any(periods > _GAP * np.median(periods)))


def some(names: Sequence[str], shown: int = _SHOWN) -> str:
    """The first few names, for a message."""
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")
