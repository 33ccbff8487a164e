"""Some episodes and some columns of a dataset, of whatever format."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

from numpy.typing import NDArray

from flowleap.datasets.columns import ACTION, CACHE_BYTES, Columns, Episode
from flowleap.datasets.interface import Dataset, NotFinite, quoted
from flowleap.datasets.splits import SPLITS
from flowleap.policy.core.errors import FlowleapError, suggest
from flowleap.policy.core.registry import Option

MASKS = "masks"  # attribute of a dataset: name of a filter -> indices of its episodes

Which = int | str | Sequence[int | str] | None
"""Episodes: how many from the first; a slice as text, `10:20`; a list of numbers and slices; or the name of a split."""


def chosen_episodes(which: Which, n: int, name: str, path: Any) -> list[int]:
    """The episodes that an option names, in its order, each once.

    Raises:
        FlowleapError: it names none, or one that is not there.
    """
    if isinstance(which, str) and which in SPLITS:
        return SPLITS[which](n)
    if isinstance(which, int) and not isinstance(which, bool):
        if which < 1:
            raise FlowleapError(
                f"{name}={which} must be a whole number >= 1, a slice '10:20' or a list [0,2,5]"
            )
        which = [f":{which}"]
    parts = [which] if isinstance(which, str) else which
    found: list[int] = []
    try:
        for part in parts if isinstance(parts, Sequence) else [parts]:
            if isinstance(part, str):
                for piece in filter(None, part.replace(" ", "").split(",")):
                    first, *rest = (int(number) if number else None for number in piece.split(":"))
                    found += range(n)[slice(first, *rest)] if rest else [first if first is not None else -1]
            elif isinstance(part, int) and not isinstance(part, bool):
                found.append(part)
            else:
                raise ValueError
    except (TypeError, ValueError) as error:
        split = suggest(which, SPLITS) if isinstance(which, str) else ""
        raise FlowleapError(
            f"{name}={which!r} is no list of episodes: say {name}=[0,2,5], {name}='10:20' or the name of a split "
            f"({', '.join(SPLITS)}){split}"
        ) from error
    for index in found:
        if not 0 <= index < n:
            raise FlowleapError(f"{name}: '{path}' has episodes 0 to {n - 1}, not {index}")
    return list(dict.fromkeys(found))


def chosen_keys(patterns: Sequence[str] | str, dataset: Dataset) -> list[str]:
    """The columns that patterns name, in their order: `state*`, and `-timestamp` for all that are observed but this.

    Raises:
        FlowleapError: a pattern fits no column, or nothing is left.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    known = [key for key in dataset.fields if key != ACTION]
    without = bool(patterns) and all(str(pattern).startswith("-") for pattern in patterns)
    keys = list(dataset.spec.observations) if without else []
    for pattern in map(str, patterns):
        plain = pattern.removeprefix("-")
        fits = fnmatch.filter(known, plain) or [
            k for k in known if {pattern, plain} & {k, dataset.stored.get(k)}
        ]
        if not fits:
            hint = f"{', '.join(known)}{suggest(pattern.removeprefix('-'), known)}"
            raise FlowleapError(f"keys: '{dataset.path}' has no column '{pattern}' to observe, only {hint}")
        keys = [k for k in keys if k not in fits] if pattern.startswith("-") else [*keys, *fits]
    if not keys:
        raise FlowleapError(f"keys={patterns} leaves nothing of '{dataset.path}' to observe")
    return list(dict.fromkeys(keys))


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What to read of a dataset; the options of every verb that reads one."""

    keys: Annotated[
        Sequence[str] | None,
        Option(
            "columns to observe, with patterns: [state,cam*] or [-goal]; null is all that may be observed"
        ),
    ] = None
    episodes: Annotated[
        Sequence[int] | None,
        Option(
            "those to read: 50 (the first ones), '10:20', [0,2,5], or a split: diffusion_policy; null is all"
        ),
    ] = None
    drop: Annotated[Sequence[int] | None, Option("episodes not to read, in the same way")] = None
    topics: Annotated[
        Mapping[str, str] | None,
        Option("ROS bags: {NAME: /topic.field, action: /topic}, what becomes a column"),
    ] = None
    rate: Annotated[
        float | None, Option("ROS bags: frames per second; null is the slowest topic's", 0, 1e4)
    ] = None
    action: Annotated[
        Sequence[str] | None,
        Option(
            "columns that hold the actions, side by side: cmd or [arm_cmd,hand_cmd]; null is the one called so"
        ),
    ] = None
    rename: Annotated[
        Mapping[str, str] | None, Option("other names for columns, new:old: {state:joint_pos,top:cam_high}")
    ] = None
    points: Annotated[
        Sequence[str] | None,
        Option(
            "columns [N, 3] or [N, 6] that are clouds of points: [cloud]; null is those that the dataset names"
        ),
    ] = None
    filter: Annotated[
        str | None, Option("only the episodes of a filter of the dataset (robomimic: mask/<filter>)")
    ] = None
    poses: Annotated[
        Literal["absolute", "relative"] | None,
        Option("UMI: what actions are made of the recorded poses; null is absolute"),
    ] = None
    resize: Annotated[
        Sequence[int] | None,
        Option("read cameras smaller, [120,160] is height and width; {top:[120,160]} names them"),
    ] = None
    crop: Annotated[
        Sequence[int] | None,
        Option("before that, keep a part of cameras: [top,left,height,width], [height,width] or centre"),
    ] = None


class View(Dataset):
    """What views of another dataset share: the facts about its episodes, which are checked there."""

    def __init__(self, dataset: Dataset) -> None:
        self.path, self._whole, self.n_episodes = dataset.path, dataset, dataset.n_episodes
        self.has_spec, self.lends_images, self.refused = (
            dataset.has_spec,
            dataset.lends_images,
            dataset.refused,
        )
        self.has_action, self.must_choose, self.stored = (
            dataset.has_action,
            dataset.must_choose,
            dataset.stored,
        )
        self.spec, self.extra, self.reasons = dataset.spec, dict(dataset.extra), dataset.reasons
        self.attrs, self.lenient = dict(dataset.attrs), True

    def _original(self, index: int) -> int:
        """The number of an episode in the other dataset."""
        return index

    def _in_dtype(self, index: int, key: str, values: NDArray) -> NDArray:
        return values  # it was looked at there

    def disorder(self, index: int) -> str | None:
        """What is wrong with the order of the rows, also where the column that says it is not chosen."""
        return self._whole.disorder(self._original(index))

    def label(self, index: int) -> str:
        """What the dataset calls the episode."""
        return self._whole.label(self._original(index))

    def seed(self, index: int) -> int | None:
        """The seed that the episode was recorded with."""
        return self._whole.seed(self._original(index))

    def scene(self, index: int) -> str | None:
        """The episode's scene."""
        return self._whole.scene(self._original(index))

    def times(self, index: int) -> NDArray | None:
        """Time stamps of the frames, also where their column is not chosen."""
        return self._whole.times(self._original(index))

    def fingerprint(self) -> str:
        """That of the dataset."""
        return self._whole.fingerprint()

    def close(self) -> None:
        """Close the dataset."""
        self._whole.close()


class Selected(View):
    """Some episodes and columns of another dataset.

    Args:
        dataset: the other one.
        keys: the columns to observe, see `chosen_keys`; other observations are not there any more.
        episodes: those that are there, see `Which`; None is all.
        drop: episodes, by their numbers in `dataset`, that are not.

    Raises:
        FlowleapError: a column or an episode is not there, or none is left.
    """

    def __init__(
        self, dataset: Dataset, keys: Sequence[str] | None = None, episodes: Which = None, drop: Which = None
    ) -> None:
        self._left_out: list[str] = []
        super().__init__(dataset)
        n = dataset.n_episodes
        chosen = (
            list(range(n)) if episodes is None else chosen_episodes(episodes, n, "episodes", dataset.path)
        )
        self._dropped = set() if drop is None else set(chosen_episodes(drop, n, "drop", dataset.path))
        self._picks_keys = keys is not None
        self.chosen = [index for index in chosen if index not in self._dropped]
        if not self.chosen:
            raise FlowleapError(f"episodes={episodes}, drop={drop} leave no episode of '{dataset.path}'")
        self.n_episodes = len(self.chosen)
        if keys is not None:
            self.must_choose = ""
            fields = dataset.fields
            self.spec = replace(self.spec, observations={k: fields[k] for k in chosen_keys(keys, dataset)})
            self.extra = {k: column for k, column in self.extra.items() if k not in self.spec.observations}
            self._left_out = [k for k in dataset.spec.observations if k not in self.spec.observations]
        place = {index: i for i, index in enumerate(self.chosen)}
        masks = dataset.attrs.get(MASKS)
        if isinstance(masks, dict):
            self.attrs[MASKS] = {
                name: [place[i] for i in found if i in place] for name, found in masks.items()
            }

    @property
    def unused(self) -> dict[str, str]:
        """Columns that are not observed, and why."""
        return dict.fromkeys(self._left_out, "left out by keys") | super().unused

    def resize(self, resize: Any = None, crop: Any = None) -> Self:
        """Let the dataset's cameras be read cropped and resized."""
        fields = self._whole.resize(resize, crop).fields
        self.spec = replace(self.spec, observations={key: fields[key] for key in self.spec.observations})
        self.extra = {key: fields[key] for key in self.extra}
        for cached in ("fields", "trainable"):
            self.__dict__.pop(cached, None)
        return self

    def columns(self, keys: Sequence[str] | None = None, cache_bytes: int = CACHE_BYTES) -> Columns:
        """Columns of the chosen episodes; what the others hold is not looked at."""
        wanted = self._wanted(keys)
        dense = [key for key in wanted if self.lends_images and self.fields[key].dense]
        columns: dict[str, Any] = dict(super().columns([k for k in wanted if k not in dense] or [ACTION]))
        if dense:
            try:
                columns |= self._whole.images(dense, cache_bytes, self.chosen)
            except NotFinite as error:  # the numbers of the episodes are those of the whole
                bad = {k: [self.chosen.index(i) for i in found] for k, found in error.bad.items()}
                raise NotFinite(self, bad, error.first) from error
        return {key: columns[key] for key in wanted}

    def _read(self, index: int, keys: Sequence[str]) -> Episode:
        return self._whole.episode(self.chosen[index], keys)

    def _original(self, index: int) -> int:
        return self.chosen[index]

    def _numbers(self, episodes: Iterable[int]) -> list[int]:
        return sorted({*self._dropped, *(self.chosen[index] for index in episodes)})

    def _without(self, keys: Iterable[str]) -> str:
        if not self._picks_keys:
            return super()._without(keys)
        return f"'keys=[{','.join(quoted(key) for key in self.spec.observations if key not in set(keys))}]'"
