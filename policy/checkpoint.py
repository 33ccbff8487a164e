"""Checkpoint files: safetensors + JSON, written atomically, read without trusting them.

    RUN/checkpoints/step_00012000/{model.safetensors, policy.json, trainer.pt}
    RUN/checkpoints/last -> step_00012000     a link, or where there are none a file that holds the name

`model.safetensors` holds `raw.*` (trained weights) and `ema.*` (averaged weights), both with the normaliser.
`policy.json` holds the format version, the Spec, registry names with plain options, and notes for people.
`trainer.pt` (optimiser moments, schedule, sampler position) is only needed to resume, and is read with
`weights_only=True`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.files import remove, write_directory
from flowleap.policy.core.hub import EXPORT_FILES, hint, policy_folder
from flowleap.policy.core.spec import Spec, read_json
from flowleap.policy.core.versions import flowleap_version

FORMAT = "flowleap-policy"
FORMAT_VERSION = 1
WEIGHTS = "model.safetensors"
MANIFEST = "policy.json"
TRAINER_STATE = "trainer.pt"
_LONGEST_NAME = 100  # of a checkpoint in a file `last`


@dataclass(frozen=True)
class StoredPolicy:
    """What a checkpoint directory holds."""

    path: Path
    spec: Spec
    config: dict[str, Any]
    info: dict[str, Any]
    state: dict[str, Tensor]


def write_policy(
    path: Path,
    states: Mapping[str, Mapping[str, Tensor]],
    spec: Spec,
    config: Mapping[str, Any],
    info: Mapping[str, Any],
    extra: Callable[[Path], None] | None = None,
) -> None:
    """Write a checkpoint directory; `states` maps `raw` and `ema` to state dicts, `extra` adds more files."""
    tensors = {
        f"{kind}.{name}": tensor.detach().cpu().contiguous().clone()
        for kind, state in states.items()
        for name, tensor in state.items()
    }
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "flowleap": flowleap_version(),
        "spec": spec.to_dict(),
        "policy": dict(config),
        "info": dict(info),
    }

    def fill(folder: Path) -> None:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        if extra is not None:
            extra(folder)

    write_directory(path, fill)


def resolve(path: Path) -> Path:
    """Return the checkpoint directory meant by `path`: itself, the last one of a run, or one of the Hub (`hf://`)."""
    path = policy_folder(path)
    for candidate in map(_followed, (path, path / "checkpoints" / "last", path / "last")):
        if (candidate / MANIFEST).is_file():
            return candidate.resolve()
    if not path.exists():
        raise FlowleapError(f"checkpoint {path} does not exist{hint(path)}")
    if (path / EXPORT_FILES[0]).is_file():
        raise FlowleapError(
            f"{path} is an export, which acts without torch: this needs the checkpoint it was made of"
        )
    others = sorted((path / "checkpoints").glob("step_*"))  # a copy of a run can lack the link
    remedy = f"; name one of its checkpoints: {others[-1]}" if others else ""
    raise FlowleapError(
        f"{path} is not a checkpoint: it has neither {MANIFEST} nor checkpoints/last/{MANIFEST}{remedy}"
    )


def read_manifest(path: Path) -> dict[str, Any]:
    """Parse and check `policy.json`; raise `FlowleapError` naming the file and the field."""
    fields, what = {"spec": dict, "policy": dict}, ("checkpoint", "a flowleap checkpoint")
    return read_json(path / MANIFEST, (FORMAT, FORMAT_VERSION), fields, what, "upgrade flowleap")


def notes(path: Path, manifest: Mapping[str, Any]) -> tuple[Spec, dict[str, Any]]:
    """The Spec and the info in the manifest of the checkpoint `path`."""
    info = manifest["info"] if isinstance(manifest.get("info"), dict) else {}
    return Spec.from_dict(manifest["spec"], f"{path / MANIFEST}: spec"), info


def read_policy(path: Path, weights: str = "ema") -> StoredPolicy:
    """Read a checkpoint's Spec, config and the `ema` or `raw` tensors."""
    if weights not in ("ema", "raw"):
        raise FlowleapError(f"weights must be 'ema' or 'raw', got {weights!r}")
    path = resolve(path)
    manifest = read_manifest(path)
    spec, info = notes(path, manifest)
    try:
        tensors = load_file(path / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise FlowleapError(f"{path / WEIGHTS}: {error}; the checkpoint is damaged") from error
    prefix = f"{weights}."
    state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return StoredPolicy(path, spec, manifest["policy"], info, state)


def read_trainer_state(path: Path) -> dict[str, Any]:
    """Load the resume state; only tensors and plain containers are accepted."""
    file = path / TRAINER_STATE
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise FlowleapError(f"{file} is missing: this checkpoint can act but not resume") from error
    except Exception as error:  # torch raises many kinds for damaged or hostile files
        raise FlowleapError(f"{file}: not readable ({type(error).__name__}); the file is damaged") from error


def point_last(checkpoints: Path, target: Path, keep: int) -> None:
    """Let `checkpoints/last` name `target`, atomically, and delete all but the newest `keep` checkpoints."""
    pointer, last = checkpoints / f".last.tmp{os.getpid()}", checkpoints / "last"
    remove(pointer)
    if last.is_dir() and not last.is_symlink():  # the run was copied by something that followed the link
        remove(last)
    try:
        if os.name == "nt":  # a link to a folder could be made by some users, but not be replaced
            raise OSError("no links")
        pointer.symlink_to(target.name)
    except (OSError, NotImplementedError):  # exFAT, for instance
        pointer.write_text(f"{target.name}\n", encoding="utf-8")
    os.replace(pointer, last)
    for old in sorted(checkpoints.glob("step_*"))[:-keep]:
        if old != target:
            shutil.rmtree(old, ignore_errors=True)


def _followed(path: Path) -> Path:
    """The checkpoint beside `path` that it names, where it is a file in place of a link; else `path`."""
    if path.name != "last" or not path.is_file():
        return path
    with path.open(encoding="utf-8", errors="replace") as file:
        name = file.read(_LONGEST_NAME).strip()
    return path.with_name(name) if re.fullmatch(r"step_\d+", name) else path
