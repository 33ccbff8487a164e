"""What columns of a dataset are: other names for them, which hold the actions, which points; for all formats alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from flowleap.datasets import roles
from flowleap.datasets.columns import ACTION, CACHE_BYTES, Columns, Episode, check_key, vectors
from flowleap.datasets.interface import Dataset, NotFinite
from flowleap.datasets.selection import View
from flowleap.policy.core.errors import FlowleapError, suggest
from flowleap.policy.core.spec import ObsKey

_CUSTOMARY = (  # names of the actions, where no column is called `action`; several are put side by side
    ("actions",),  # openpi, LIBERO, robomimic
    ("actions.joint.position", "actions.effector.position"),  # AgiBot World
)


def mapped(
    dataset: Dataset, action: str | Sequence[str] | None = None, rename: Mapping[str, str] | None = None
) -> Dataset:
    """Return the dataset with its actions chosen and its columns renamed; itself where there is nothing to do.

    Args:
        dataset: the dataset.
        action: the columns that hold the actions, put side by side; None goes by the customary names.
        rename: new name -> the column, by the name that `inspect` shows or the one in the file.

    Raises:
        FlowleapError: a column is not there, or no column of a customary name holds actions.
    """
    asked = [action] if isinstance(action, str) else action
    if asked is not None and (not asked or not all(isinstance(name, str) for name in asked)):
        raise FlowleapError(f"action={action!r} names no column: say action=NAME or action=[NAME,NAME]")
    if rename is not None and not all(isinstance(x, str) for pair in dict(rename).items() for x in pair):
        raise FlowleapError(f"rename={rename!r} does not say which names: say rename={{NEW:OLD}}")
    if asked is None and not dataset.has_action:
        asked = _customary(dataset)
    if asked is None and not rename:
        return dataset
    parts = [_column(name, dataset, "action") for name in asked or ()]
    return Mapped(
        dataset, parts, {new: _column(old, dataset, "rename") for new, old in (rename or {}).items()}
    )


def observe_points(
    dataset: Dataset, names: Sequence[str] | str, rename: Mapping[str, str] | None = None
) -> None:
    """Let columns [N, 3] or [N, 6] of a dataset be read as clouds of points, and observed, from now on.

    Args:
        dataset: the dataset itself, no view of it.
        names: the columns, by the name that `inspect` shows, the one in the file, or one that `rename` will give.
        rename: new name -> the column.

    Raises:
        FlowleapError: a column is not there, or has another shape or no floats.
    """
    asked = [names] if isinstance(names, str) else names
    if not all(isinstance(name, str) for name in asked):
        raise FlowleapError(f"points={names!r} names no column: say points=[NAME]")
    renamed = rename or {}
    observed, others = dict(dataset.spec.observations), dataset.extra
    if dataset.must_choose:  # none of them is observed
        observed, others = {}, others | observed
    for key in dict.fromkeys(_column(renamed.get(name, name), dataset, "points") for name in asked):
        column = dataset.fields[key]
        if key == ACTION or column.image:
            holds = "images" if column.image else "the actions"
            raise FlowleapError(f"points: '{key}' of '{dataset.path}' holds {holds}")
        observed[key] = ObsKey(column.shape, column.dtype, "points")
        try:
            observed[key].check()
        except FlowleapError as error:
            raise FlowleapError(f"points: '{key}' of '{dataset.path}': {error}") from error
    dataset.must_choose = ""
    dataset.extra = {key: column for key, column in others.items() if key not in observed}
    dataset.spec = replace(dataset.spec, observations=observed)
    for cached in ("fields", "trainable"):
        dataset.__dict__.pop(cached, None)


def _customary(dataset: Dataset) -> Sequence[str]:
    """The columns that hold the actions, by their names."""
    for names in _CUSTOMARY:
        if set(names) <= set(dataset.fields):
            return names
    known = list(dataset.fields)
    near = [key for key in known if roles.no_observation(key) == "an action"]
    remedy = f"action=[{','.join(near or ['NAME'])}] says which hold the actions"
    lost = "".join(f"; '{key}' cannot be read: {reason}" for key, reason in dataset.refused.items())
    raise FlowleapError(f"'{dataset.path}' has no column '{ACTION}', only {', '.join(known)}{lost}; {remedy}")


def _column(name: str, dataset: Dataset, option: str) -> str:
    """The column of a name, which may be the one in the file."""
    if name in dataset.fields:
        return name
    for key, stored in dataset.stored.items():
        if stored == name and key in dataset.fields:
            return key
    known = f"{', '.join(dataset.fields)}{suggest(name, dataset.fields)}"
    raise FlowleapError(f"{option}: '{dataset.path}' has no column '{name}', only {known}")


class Mapped(View):
    """A view of another dataset under other names.

    A renamed column is observed unless its new name says that it is none to observe (`roles`).

    Args:
        dataset: the other one.
        parts: its columns that make the actions, in this order; none for those that it has. Those are then left out.
        rename: new name -> column.

    Raises:
        FlowleapError: two columns would have one name, or what makes the actions is no vector of numbers.
    """

    def __init__(self, dataset: Dataset, parts: Sequence[str], rename: Mapping[str, str]) -> None:
        super().__init__(dataset)
        self._parts = list(parts)
        self.has_action = bool(parts) or dataset.has_action
        others = [key for key in dataset.fields if key != ACTION and key not in parts]
        given = {old: new for new, old in rename.items() if old in others}
        self._old = {given.get(key, key): key for key in others}
        for new, old in rename.items():
            if new == ACTION or old not in others:
                raise FlowleapError(f"rename={{{new}:{old}}}: the actions are chosen by action={old}")
            check_key(new)
        if len(given) < len(rename) or len(self._old) < len(others):
            raise FlowleapError(f"rename: two columns of '{self.path}' would have one name, or one two names")
        self._describe(dataset, set(given.values()))

    def _describe(self, whole: Dataset, renamed: set[str]) -> None:
        """Sort the columns into observations and others, and describe the actions."""
        observations: dict[str, ObsKey] = {}
        self.extra, self.reasons = {}, {}
        for key, old in self._old.items():
            column, reason = whole.fields[old], whole.reasons.get(old)
            observed = old in whole.spec.observations and not whole.must_choose
            if key in renamed:
                reason = roles.no_observation(key) if column.kind == "lowdim" else None
                observed = reason is None
            (observations if observed else self.extra)[key] = column
            if reason is not None and not observed:
                self.reasons[key] = reason
        if observations:
            self.must_choose = ""
        elif self.extra:
            self.must_choose = roles.explain(self.reasons) or whole.must_choose
            observations, self.extra = self.extra, {}
        else:
            raise FlowleapError(f"'{self.path}' has no column beside the actions to observe")
        if ACTION in whole.extra and not self._parts:
            self.extra[ACTION] = whole.extra[ACTION]
        facts: dict[str, Any] = {}
        if self._parts:
            self.attrs["action_columns"] = [whole.stored.get(key, key) for key in self._parts]
            fields = [whole.fields[key] for key in self._parts]
            facts["action_dim"] = sum(field.size for field in fields)
            dtype = np.result_type(*(np.dtype(field.dtype) for field in fields))
            if any(field.kind != "lowdim" for field in fields):
                raise FlowleapError(f"action={self._parts}: an image or a cloud of points is no action")
            if dtype != np.float32:
                self.extra[ACTION] = ObsKey((facts["action_dim"],), dtype.name)
            if all(key.endswith("_abs") for key in self._parts):  # robomimic's name for absolute actions
                facts["action_convention"] = "absolute"
        self.spec = replace(whole.spec, observations=observations, **facts)
        self.stored = {key: whole.stored.get(old, old) for key, old in self._old.items()}

    def columns(self, keys: Sequence[str] | None = None, cache_bytes: int = CACHE_BYTES) -> Columns:
        """Columns of all episodes."""
        wanted = self._wanted(keys)
        dense = [key for key in wanted if self.lends_images and self.fields[key].dense]
        columns: dict[str, Any] = dict(super().columns([k for k in wanted if k not in dense] or [ACTION]))
        if dense:
            columns |= self._lent(dense, lambda old: self._whole.columns(old, cache_bytes))
        return {key: columns[key] for key in wanted}

    def images(self, keys: Sequence[str], cache_bytes: int, episodes: Sequence[int]) -> Columns:
        """Image columns of some episodes, where they are lent."""
        return self._lent(keys, lambda old: self._whole.images(old, cache_bytes, episodes))

    def _lent(self, keys: Sequence[str], read: Callable[[list[str]], Columns]) -> Columns:
        """Images of the other dataset, and what is not finite in them, by the names here."""
        old = {key: self._old[key] for key in keys}
        try:
            columns = read(list(old.values()))
        except NotFinite as error:
            bad = {key: error.bad[name] for key, name in old.items() if name in error.bad}
            raise NotFinite(self, bad, error.first) from error
        return {key: columns[name] for key, name in old.items()}

    def _read(self, index: int, keys: Sequence[str]) -> Episode:
        actions = (self._parts or [ACTION]) if ACTION in keys else []
        old = {key: self._old[key] for key in keys if key != ACTION}
        episode = self._whole.episode(index, list(dict.fromkeys([*old.values(), *actions])))
        columns = {key: episode[name] for key, name in old.items()}
        if actions:
            columns[ACTION] = np.concatenate([vectors(episode[name]) for name in actions], axis=1)
        return columns
