"""robomimic HDF5 (robosuite, MimicGen, LIBERO): data/demo_*/{obs/*, actions}, mask/<filter>, env_args

Observations are the datasets of `obs/`, actions those of `actions`; the other datasets of a demonstration (`states`,
`rewards`, `dones`, `actions_abs`) are extra columns. `next_obs` is left out: it is `obs`, one frame later. robomimic
(0.3) reads what is written here with `load_next_obs=False`, which is the setting of its BC algorithms.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets.columns import ACTION, Episode, as_stored, flat_names, plain, require_memory
from flowleap.datasets.formats import base
from flowleap.datasets.formats.hdf5 import Hdf5Source
from flowleap.policy.core.errors import FlowleapError, optional_import, suggest
from flowleap.policy.core.spec import ActionConvention, ObsKey

_ACTIONS = "actions"
_MASKS = "masks"  # attribute of a store: name of a filter -> indices of its episodes
_NOTE = "flowleap"  # dataset with JSON as bytes: an HDF5 attribute could not hold more than 64 KiB
_MAGIC = b"\x89HDF\r\n\x1a\n"
_GYM = 2  # robomimic's EnvType


def detect(path: Path) -> bool:
    """A file with the signature, or at least a suffix, of HDF5."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(_MAGIC)) == _MAGIC or path.suffix in (".hdf5", ".h5")


class Reader(Hdf5Source):
    """A robomimic file; the shapes are those of the first demonstration.

    Args:
        path: the file.
        filter: read the demonstrations of `mask/<filter>` only, such as `train` or `valid`.
        actions: the dataset with the actions, such as `actions_abs`.
    """

    def __init__(self, path: Path, filter: str | None = None, actions: str = _ACTIONS) -> None:
        super().__init__(path, path)
        data = self._file.get("data")
        if not isinstance(data, self._h5.Group):
            raise FlowleapError(f"'{path}' has no group 'data', only {sorted(self._file)}: not of robomimic")
        with base.explain(f"'{path}': data cannot be read", FlowleapError):
            self._require_own(data.id)
        # At most 2 MiB of metadata: HDF5's own 32 MiB are ten times that in memory, and reading never looks back.
        config = self._file.id.get_mdc_config()
        config.set_initial_size, config.initial_size = True, 2**20
        config.min_size, config.max_size = 2**20, 2 * 2**20
        self._file.id.set_mdc_config(config)
        self._data = data
        self._types: dict[str, tuple[Any, np.dtype]] = {}  # column -> HDF5 type and dtype that were met last
        self._demos = self._select(filter)
        self.n_episodes = len(self._demos)
        self._noted = actions == _ACTIONS and _NOTE in self._file
        if self._noted:
            where = f"'{path}', {_NOTE}"
            with base.explain(f"{where} is damaged", ValueError, TypeError, AttributeError):
                note = json.loads(self._file[_NOTE][()].tobytes())
            self.take_note(note, where)
            paths = {key: f"obs/{key}" if key in self.spec.observations else key for key in self.fields}
        else:
            paths = self._names(actions)
        self._paths = paths | {ACTION: actions}
        if not self._noted:
            self._infer(paths, actions)
        masks = self._filters() if filter is None else {}
        if masks:
            number = {name: i for i, name in enumerate(self._demos)}
            found = {name: sorted(number[d] for d in demos if d in number) for name, demos in masks.items()}
            self.attrs[_MASKS] = found

    def _infer(self, names: Mapping[str, str], actions: str) -> None:
        """Describe the columns of a file that others wrote."""
        found = {key: self._described(key, path) for key, path in names.items()}
        observations = {key: column for key, column in found.items() if names[key].startswith("obs/")}
        if not observations:
            raise FlowleapError(
                f"'{self.path}', {self.label(0)} has no observations in 'obs': extract them from the states with "
                "robomimic's dataset_states_to_obs.py"
            )
        extra = {key: column for key, column in found.items() if key not in observations}
        env_args = self._env_args()
        rate = _env_kwargs(env_args).get("control_freq")
        hz = float(rate) if isinstance(rate, int | float) and 0 < rate < np.inf else 0.0
        convention = "absolute" if actions.endswith("_abs") else action_convention(env_args)
        facts = {"control_hz": hz, "action_convention": convention, "source": {"env_args": env_args}}
        self.describe(observations, self._described(ACTION, actions), extra, **facts)

    def _described(self, key: str, path: str) -> ObsKey:
        dataset = self._group(0).get(path)
        if not self._numeric(dataset):
            raise self.error(0, key, f"is no numeric dataset ({path})")
        return as_stored(dataset.shape[1:], dataset.dtype)

    def _select(self, filter: str | None) -> list[str]:
        """Names of the demonstrations, by number; those of a filter only."""
        if filter is None:
            demos = [self._text(name, "data") for name in self._data]
        else:
            masks = self._filters()
            if filter not in masks:
                known = f"{sorted(masks)}{suggest(filter, masks)}"
                raise FlowleapError(f"'{self.path}' has no filter '{filter}', only {known}")
            demos = masks[filter]
            for name in demos:
                if name not in self._data:
                    raise FlowleapError(f"'{self.path}': mask/{filter} names '{name}', which is not in data/")
        if not demos:
            raise FlowleapError(f"'{self.path}' has no demonstrations in data/")
        return sorted(demos, key=lambda name: (int("".join(re.findall(r"[0-9]+", name)) or 0), name))

    def _filters(self) -> dict[str, list[str]]:
        """Filter -> names of its demonstrations, each once."""
        group = self._file.get("mask", {})
        if group and not isinstance(group, self._h5.Group):
            raise FlowleapError(f"'{self.path}': mask is no group")
        found: dict[str, list[str]] = {}
        for name in group:
            node = group[name]
            if not isinstance(node, self._h5.Dataset) or node.ndim != 1:
                raise FlowleapError(f"'{self.path}': mask/{name} is no list of demonstrations")
            found[name] = list(dict.fromkeys(self._text(demo, f"mask/{name}") for demo in node[()]))
        return found

    def _names(self, actions: str) -> dict[str, str]:
        """Column -> path below the demonstration, of all numeric datasets but the actions."""
        found: list[str] = []

        def visit(name: str, node: Any) -> None:
            name = self._text(name, self.label(0))
            if self._numeric(node) and name != actions and not name.startswith("next_obs/"):
                found.append(name)

        self._group(0).visititems(visit)
        found.sort(key=lambda name: (not name.startswith("obs/"), name))
        return flat_names(found, ["obs/"])

    def _env_args(self) -> dict[str, Any]:
        wrong = f"'{self.path}': attribute env_args of data is no JSON"
        with base.explain(wrong, ValueError, TypeError, RecursionError):
            env_args = json.loads(self._data.attrs.get("env_args", "{}"))
        return env_args if isinstance(env_args, dict) else {}

    def _group(self, index: int) -> Any:
        name = self._demos[index]
        if name not in self._data or not isinstance(self._data[name], self._h5.Group):
            raise FlowleapError(f"'{self.path}': data/{name} is no group")
        return self._data[name]

    def _read(self, index: int, keys: Sequence[str]) -> Episode:
        """Read some columns of one demonstration."""
        name = self._demos[index]
        with base.explain(f"'{self.path}': data/{name} is no group", KeyError, ValueError):
            group = self._h5.h5g.open(self._data.id, name.encode())
        columns: Episode = {}
        for key in keys:
            with self.naming(index, key):
                columns[key] = self._values(group, key)
        length = len(columns[keys[0]])
        samples = self._samples(group)
        if samples not in (None, length):
            raise self.error(index, keys[0], f"has {length} frames, but num_samples says {samples}")
        return columns

    def _values(self, group: Any, key: str) -> NDArray:
        """Read a column of a demonstration.

        The low-level interface of h5py is three times as fast as `group[path][()]` for the small datasets here.
        """
        h5, path = self._h5, self._paths[key]
        with base.explain(f"is missing: no dataset {path}", KeyError, ValueError, TypeError):
            dataset = h5.h5d.open(group, path.encode())
        self._require_own(dataset)
        kind, shape = dataset.get_type(), dataset.shape
        known = self._types.get(key)
        if known is None or not known[0].equal(kind):
            known = self._types[key] = kind, dataset.dtype
        dtype = known[1]
        if dtype.kind not in "biuf" or not shape:
            raise FlowleapError(f"has dtype {dtype} and shape {shape}, not numbers a frame")
        require_memory(math.prod(shape) * dtype.itemsize, "")
        values = np.empty(shape, dtype)
        dataset.read(h5.h5s.ALL, h5.h5s.ALL, values)
        return values

    def _samples(self, group: Any) -> int | str | None:
        """The number of frames that a demonstration states, or what it states instead."""
        h5 = self._h5
        if not h5.h5a.exists(group, b"num_samples"):
            return None
        attribute = h5.h5a.open(group, b"num_samples")
        number = attribute.get_type().get_class() in (h5.h5t.INTEGER, h5.h5t.FLOAT)
        if not number or math.prod(attribute.shape) != 1:  # HDF5 would write beyond a buffer for one number
            return f"{attribute.dtype} {list(attribute.shape)}"
        samples = np.empty(attribute.shape, np.int64)
        attribute.read(samples)
        return int(samples.reshape(-1)[0])

    def label(self, index: int) -> str:
        """The name of the demonstration's group."""
        return self._demos[index]

    def seed(self, index: int) -> int | None:
        """The seed that `Writer` noted."""
        if not self._noted:
            return None
        seed = self._group(index).attrs.get("seed")
        return None if seed is None else int(seed)

    def scene(self, index: int) -> str | None:
        """The attribute `model_file` (MJCF), which robosuite's recordings have."""
        model = self._group(index).attrs.get("model_file")
        return None if model is None else self._text(model, f"{self.label(index)}, model_file")


class Writer(base.Writer):
    """Writes a robomimic file; see `base.Writer` for the arguments.

    `spec.source["env_args"]`, if it is there, becomes the file's `env_args`, `attrs["masks"]` (name -> episode
    indices) become `mask/<name>`, and extra columns lie beside `actions`.
    """

    kind = "HDF5 file"
    is_kind = staticmethod(detect)

    def _prepare(self) -> None:
        self._h5 = optional_import("h5py", extra="formats")
        for key in self._layout.columns:
            if key not in self.spec.observations and key in ("obs", "next_obs", _ACTIONS):
                raise FlowleapError(f"a robomimic file cannot hold a column '{key}' beside the observations")

    def _open(self) -> None:
        self._file = self._h5.File(self._temporary, "w")
        self._data = self._file.create_group("data")

    def _write(self, columns: Episode, length: int, seed: int | None) -> None:
        group = self._data.create_group(f"demo_{self.n_episodes}")
        for key, values in columns.items():
            name = f"obs/{key}" if key in self.spec.observations else key
            group.create_dataset(_ACTIONS if key == ACTION else name, data=values)
        group.attrs["num_samples"] = length
        if seed is not None:
            group.attrs["seed"] = seed

    def _finish(self) -> None:
        self._data.attrs["total"] = self.n_frames
        default = {"env_name": self.spec.source.get("env", "unknown"), "type": _GYM, "env_kwargs": {}}
        self._data.attrs["env_args"] = json.dumps(self.spec.source.get("env_args") or default, default=plain)
        for name, episodes in self.attrs.get(_MASKS, {}).items():
            demos = np.array([f"demo_{i}" for i in episodes], dtype="S")
            self._file.create_dataset(f"mask/{name}", data=demos)
        note = self._note() | {"attrs": {key: value for key, value in self.attrs.items() if key != _MASKS}}
        text = json.dumps(note, default=plain).encode()
        self._file.create_dataset(_NOTE, data=np.frombuffer(text, dtype=np.uint8))

    def _close(self) -> None:
        self._file.close()


def action_convention(env_args: Mapping[str, Any]) -> ActionConvention:
    """Read off robomimic's `env_args` whether actions are absolute targets or deltas.

    robosuite 1.4 says it as `control_delta` (true if absent) of its controller, robosuite 1.5 as the `input_type` of
    each arm. Without a controller, actions count as absolute.
    """
    controller = _env_kwargs(env_args).get("controller_configs")
    controllers = controller if isinstance(controller, list) else [controller]
    for config in controllers:
        if not isinstance(config, dict):
            continue
        parts = body.values() if isinstance(body := config.get("body_parts"), dict) else ()
        kinds = [part["input_type"] for part in parts if isinstance(part, dict) and "input_type" in part]
        if kinds:
            return "delta" if "delta" in kinds else "absolute"
        return "delta" if config.get("control_delta", True) else "absolute"
    return "absolute"


def _env_kwargs(env_args: Mapping[str, Any]) -> dict[str, Any]:
    kwargs = env_args.get("env_kwargs")
    return kwargs if isinstance(kwargs, dict) else {}
