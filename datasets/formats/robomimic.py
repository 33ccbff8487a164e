"""robomimic HDF5 (robosuite, MimicGen, LIBERO): data/demo_*/{obs/*, actions}, mask/<filter>, env_args

Observations are the datasets of `obs/`, actions those of `actions`; the other datasets of a demonstration (`states`,
`rewards`, `dones`, `actions_abs`) are extra columns. `next_obs` is left out: it is `obs`, one frame later. robomimic
(0.3) reads what is written here with `load_next_obs=False`, which is the setting of its BC algorithms.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets.columns import ACTION, Episode, plain, require_memory
from flowleap.datasets.formats import base
from flowleap.datasets.formats.hdf5 import Hdf5Episodes, by_number, is_hdf5, joined, positive
from flowleap.datasets.selection import MASKS
from flowleap.policy.core.errors import FlowleapError, optional_import, suggest
from flowleap.policy.core.spec import ActionConvention

_ACTIONS = "actions"
NOTE = "flowleap"  # dataset with JSON as bytes: an HDF5 attribute could not hold more than 64 KiB
_GYM = 2  # robomimic's EnvType
_OTHERS = (
    "neither of robomimic or Isaac Lab (data/demo_*) nor of ManiSkill (traj_*), ALOHA (observations/*, action), D4RL "
    "(observations, actions, terminals) or Minari (episode_*, and metadata.json beside the file); write it anew, see "
    "'Recordings of your own' in docs/data.md"
)
_BY_NUMBER = "episodes=[0,2] or episodes='10:20' chooses by number"


detect = is_hdf5  # other layouts are asked first


class Reader(Hdf5Episodes):
    """A robomimic file; the shapes are those of the first demonstration.

    Args:
        path: the file.
        filter: read the demonstrations of `mask/<filter>` only, such as `train` or `valid`.
    """

    observed = ("obs/",)
    ignored = ("next_obs/",)
    may_lack_actions = True

    def __init__(self, path: Path, filter: str | None = None) -> None:
        super().__init__(path, path, _ACTIONS)
        data = self._file.get("data")
        if not isinstance(data, self._h5.Group):
            raise FlowleapError(f"'{path}' has no group 'data', only {sorted(self._file)}: {_OTHERS}")
        with base.explain(f"'{path}': data cannot be read", FlowleapError):
            self._require_own(data.id)
        # At most 2 MiB of metadata: HDF5's own 32 MiB are ten times that in memory, and reading never looks back.
        config = self._file.id.get_mdc_config()
        config.set_initial_size, config.initial_size = True, 2**20
        config.min_size, config.max_size = 2**20, 2 * 2**20
        self._file.id.set_mdc_config(config)
        self._data = data
        self._types: dict[str, tuple[Any, np.dtype]] = {}  # path -> HDF5 type and dtype that were met last
        self._demos = self._select(filter)
        self.n_episodes = len(self._demos)
        self._noted = NOTE in self._file
        if self._noted:
            where = f"'{path}', {NOTE}"
            with base.explain(f"{where} is damaged", ValueError, TypeError, AttributeError):
                note = json.loads(self._file[NOTE][()].tobytes())
            self.take_note(note, where)
            self._paths = {key: f"obs/{key}" if key in self.spec.observations else key for key in self.fields}
        else:
            env_args = self._env_args()
            hz, convention = self._facts(env_args)
            self._infer(control_hz=hz, action_convention=convention, source={"env_args": env_args})
        masks = self._filters() if filter is None else {}
        if masks:
            number = {name: i for i, name in enumerate(self._demos)}
            found = {name: sorted(number[d] for d in demos if d in number) for name, demos in masks.items()}
            self.attrs[MASKS] = found

    def _first_group(self) -> Any:
        return self._group(0)

    def _facts(self, env_args: Mapping[str, Any]) -> tuple[float, ActionConvention]:
        """The rate (0: unknown) and the convention of the actions that `env_args` state."""
        hz = positive(_env_kwargs(env_args).get("control_freq"))
        return hz, action_convention(env_args)

    def _no_observations(self) -> str:
        if "states" not in self._group(0):
            there = sorted(str(name) for name in self._group(0))
            return (
                f"has no observations in 'obs', only {there}: they belong into data/{self.label(0)}/obs/NAME"
            )
        script, made = "python -m robomimic.scripts", "--output_name NAME.hdf5 --done_mode 2"
        first = f"`{script}.conversion.convert_robosuite --dataset {self.path}` and "
        extract = f"`{script}.dataset_states_to_obs --dataset {self.path} {made}`"
        commands = extract if "env_args" in self._data.attrs else first + extract
        version = self._data.attrs.get("repository_version")
        suite = "" if version is None else f" and robosuite {version}"
        return f"has no observations in 'obs': with robomimic{suite}, {commands} extract them from the states"

    def _select(self, filter: str | None) -> list[str]:
        """Names of the demonstrations, by number; those of a filter only."""
        if filter is None:
            demos = [self._text(name, "data") for name in self._data]
        else:
            masks = self._filters()
            if filter not in masks:
                known = f"only {sorted(masks)}{suggest(filter, masks)}" if masks else "and no others in mask/"
                raise FlowleapError(f"'{self.path}' has no filter '{filter}', {known}; {_BY_NUMBER}")
            demos = masks[filter]
            missing = [name for name in demos if name not in self._data]
            if missing or not demos:
                wrong = f"names {missing}, which data/ does not have" if missing else "names no demonstration"
                raise FlowleapError(f"'{self.path}': mask/{filter} {wrong}; without filter=, {_BY_NUMBER}")
        if not demos:
            raise FlowleapError(f"'{self.path}' has no demonstrations in data/")
        return sorted(demos, key=by_number)

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

    def _place(self, index: int) -> tuple[Any, int, int]:
        group = self._group(index)
        with self.naming(index, self._counted):
            return group, 0, len(self._require_dataset(group, self._counted))

    def _read(self, index: int, keys: Sequence[str]) -> Episode:
        """Read some columns of one demonstration."""
        name = self._demos[index]
        with base.explain(f"'{self.path}': data/{name} is no group", KeyError, ValueError):
            group = self._h5.h5g.open(self._data.id, name.encode())
        columns: Episode = {}
        for key in keys:
            paths = self._actions if key == ACTION else [self._paths[key]]
            with self.naming(index, key):
                columns[key] = joined([self._whole(index, group, path) for path in paths])
        length = len(columns[keys[0]])
        samples = self._samples(group)
        if samples not in (None, length):
            line = f"h5py.File({str(self.path)!r}, 'a')['data/{name}'].attrs['num_samples'] = {length}"
            remedy = f'`python -c "import h5py; {line}"` corrects it'
            wrong = f"has {length} frames, but num_samples says {samples}"
            raise self.error(index, keys[0], f"{wrong}: {remedy}{self.or_without(index)}")
        return columns

    def _whole(self, index: int, group: Any, path: str) -> NDArray:
        """Read a dataset of a demonstration, whose group is given as h5py's low-level identifier.

        The low-level interface of h5py is three times as fast as `group[path][()]` for the small datasets here.
        """
        if path in self._encoded:
            node = self._require_dataset(self._group(index), path)
            return self._decoded(node, 0, len(node))
        h5 = self._h5
        with base.explain(f"is missing: no dataset {path}", KeyError, ValueError, TypeError):
            dataset = h5.h5d.open(group, path.encode())
        self._require_own(dataset)
        kind, shape = dataset.get_type(), dataset.shape
        known = self._types.get(path)
        if known is None or not known[0].equal(kind):
            known = self._types[path] = kind, dataset.dtype
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
                raise FlowleapError(
                    f"a robomimic file cannot hold a column '{key}' beside the observations: keys=[...] chooses others"
                )

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
        for name, episodes in self.attrs.get(MASKS, {}).items():
            demos = np.array([f"demo_{i}" for i in episodes], dtype="S")
            self._file.create_dataset(f"mask/{name}", data=demos)
        note = self._note() | {"attrs": {key: value for key, value in self.attrs.items() if key != MASKS}}
        text = json.dumps(note, default=plain).encode()
        self._file.create_dataset(NOTE, data=np.frombuffer(text, dtype=np.uint8))

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
