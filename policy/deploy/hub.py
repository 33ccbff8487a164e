"""Push a policy to the Hugging Face Hub: the files that it consists of, and a card (see `card`).

    push("runs/door", "me/door")                  the last checkpoint of a run
    push("runs/door/export_nfe1", "me/door-onnx")
    Policy.load("hf://me/door")                   see `flowleap.policy.core.hub`

A push is one commit. A repository holds one policy: the files of another kind that an earlier push left are removed by
it, and stay in the history.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.hub import (
    CHECKPOINT_FILES,
    EXPORT_FILES,
    POLICY_FILES,
    Address,
    explained,
    is_name,
    policy_folder,
)
from flowleap.policy.deploy.card import Measured, Subject, card, dataset_of

CARD = "README.md"
_MOST_RESULTS = 50


@dataclass(frozen=True)
class Pushed:
    """What a push wrote.

    Attributes:
        address: of the commit: `hf://OWNER/NAME@COMMIT` stays what it is.
        url: of the repository's page.
        files: their names.
        measured: how many evaluations the card lists.
    """

    address: Address
    url: str
    files: tuple[str, ...]
    measured: int


@dataclass(frozen=True)
class Prepared:
    """A policy that is ready to be pushed: its folder, and what its card says."""

    folder: Path
    subject: Subject

    @property
    def files(self) -> tuple[str, ...]:
        """The files that are pushed, without the card."""
        known = EXPORT_FILES if self.subject.kind == "export" else CHECKPOINT_FILES
        return tuple(name for name in known if (self.folder / name).is_file())


def destination(to: str) -> Address:
    """The repository that `OWNER/NAME` (or `hf://OWNER/NAME`) names.

    Raises:
        FlowleapError: it names none, or a revision.
    """
    name = to.removeprefix("hf://")
    if not is_name(name):
        raise FlowleapError(
            f"to={to} is no repository of the Hub: write OWNER/NAME, such as my-name/pusht; a branch is revision=NAME"
        )
    return Address(name)


def prepare(path: str | Path) -> Prepared:
    """Open the policy at `path` as it would be opened after a download, and gather what its card says.

    Args:
        path: a run directory (its last checkpoint is meant), a checkpoint, an exported folder, or `hf://OWNER/NAME`.

    Raises:
        FlowleapError: there is none, or it cannot be loaded.
    """
    folder = policy_folder(path)
    return _export(folder) if (folder / EXPORT_FILES[0]).is_file() else _checkpoint(folder)


def push(
    path: str | Path,
    to: str,
    *,
    revision: str | None = None,
    private: bool | None = None,
    license: str | None = None,
    message: str | None = None,
) -> Pushed:
    """Push the policy at `path` to the repository `to`, which is made if it is not there.

    Args:
        path: see `prepare`.
        to: OWNER/NAME.
        revision: branch, made if it is not there; `None` is the main branch.
        private: let only its owner see the repository; `None` is the owner's default for new ones.
        license: of the weights, for the card, such as `mit` or `cc-by-4.0`.
        message: of the commit.

    Raises:
        FlowleapError: the policy cannot be loaded, there is no token, or the Hub refuses or cannot be reached.
    """
    import huggingface_hub

    address = destination(to)
    prepared = prepare(path)
    text = card(prepared.subject, _shown(address, revision), checked_license(license))
    if huggingface_hub.get_token() is None:
        raise FlowleapError(
            f"hf://{address.name} cannot be written (there is no token); `hf auth login`, or set HF_TOKEN"
        )
    api = huggingface_hub.HfApi(library_name="flowleap")
    with explained(Address(address.name, revision), writing=True), _staged(prepared, text) as folder:
        api.create_repo(address.name, private=private, exist_ok=True)
        if private and not api.model_info(address.name).private:
            raise FlowleapError(
                f"hf://{address.name} is public already, so nothing was pushed; make it private on its page, or give "
                "another to="
            )
        if revision not in (None, "main"):
            api.create_branch(address.name, branch=str(revision), exist_ok=True)
        commit = api.upload_folder(
            repo_id=address.name,
            folder_path=folder,
            revision=revision,
            commit_message=message or _message(prepared.subject),
            allow_patterns=[*POLICY_FILES, CARD],
            delete_patterns=list(POLICY_FILES),
        )
    pinned = Address(address.name, commit.oid)
    return Pushed(
        pinned, f"{api.endpoint}/{address.name}", (*prepared.files, CARD), len(prepared.subject.measured)
    )


def checked_license(license: str | None) -> str | None:
    """Raise `FlowleapError` unless `license` could be an identifier of the Hub's list."""
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license):
        raise FlowleapError(
            f"license={license} is no identifier, such as mit, apache-2.0, cc-by-4.0 or other"
        )
    return license


def card_of(prepared: Prepared, to: str, revision: str | None = None, license: str | None = None) -> str:
    """The card that `push` would write."""
    return card(prepared.subject, _shown(destination(to), revision), checked_license(license))


def _shown(address: Address, revision: str | None) -> Address:
    return Address(address.name, None if revision == "main" else revision)


def _message(subject: Subject) -> str:
    step = subject.info.get("step")
    trained = f", {step} steps" if isinstance(step, int) else ""
    return f"Export at NFE {subject.nfe}{trained}" if subject.kind == "export" else f"Checkpoint{trained}"


@contextmanager
def _staged(prepared: Prepared, text: str) -> Iterator[Path]:
    """Lend a folder with what is pushed and nothing else."""
    with tempfile.TemporaryDirectory(prefix="flowleap-push-") as name:
        folder = Path(name)
        for file in prepared.files:
            source, target = (prepared.folder / file).resolve(), folder / file
            if file == CHECKPOINT_FILES[0]:
                target.write_text(_without_places(source), encoding="utf-8")
                continue
            try:
                target.symlink_to(source)
            except (OSError, NotImplementedError):  # Windows asks for rights
                shutil.copyfile(source, target)
        (folder / CARD).write_text(text, encoding="utf-8")
        yield folder


def _without_places(manifest: Path) -> str:
    """`policy.json` as it stands, but for the folder in which the dataset lay: that is nobody's business."""
    text = manifest.read_text(encoding="utf-8")
    data = json.loads(text)
    info = data.get("info")
    dataset = info.get("dataset") if isinstance(info, dict) else None
    if isinstance(dataset, str) and (
        PurePosixPath(dataset).is_absolute() or PureWindowsPath(dataset).is_absolute()
    ):
        info["dataset"] = str(dataset_of(info))
        return json.dumps(data, indent=2) + "\n"
    return text


def _checkpoint(path: Path) -> Prepared:
    from flowleap.policy.checkpoint import read_manifest
    from flowleap.policy.policy import Policy

    policy = Policy.load(path)
    folder = policy.checkpoint
    assert folder is not None
    step = policy.info.get("step")
    run = folder.parent.parent if folder.parent.name == "checkpoints" else folder
    measured, unread = _measured([run / "eval"], lambda one: one.training_step == step)
    versions = {"flowleap": read_manifest(folder).get("flowleap")}
    subject = Subject("checkpoint", policy.spec, None, policy.config, policy.info, versions, measured, unread)
    return Prepared(folder, subject)


def _export(folder: Path) -> Prepared:
    from flowleap.policy.deploy.runtime import ExportedPolicy

    policy = ExportedPolicy.load(folder)
    made_of = _mapping(policy.manifest.get("checkpoint"))
    info = {"task": policy.task, "step": made_of.get("step"), **_training(folder, made_of)}
    config = _mapping(made_of.get("policy")) or {"objective": policy.objective}

    def of_this(one: Measured) -> bool:
        same = one.training_step == made_of.get("step") and one.weights == made_of.get("weights")
        return one.nfe == policy.steps and (one.kind == "export" or same)

    measured, unread = _measured([folder / "eval"], of_this)
    if _training(folder, made_of):  # the checkpoint's own results are of the same weights
        measured = [*measured, *_measured([folder.parent / "eval"], of_this)[0]]
    versions = _mapping(policy.manifest.get("versions"))
    subject = Subject("export", policy.spec, policy.steps, config, info, versions, measured, unread)
    return Prepared(folder, subject)


def _training(export: Path, made_of: Mapping[str, Any]) -> Mapping[str, Any]:
    """The notes of the checkpoint that an export was made of, if both still lie in one run."""
    name = made_of.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"step_\d+", name):
        return {}
    file = export.resolve().parent / "checkpoints" / name / CHECKPOINT_FILES[0]
    try:
        info = _mapping(_mapping(json.loads(file.read_text(encoding="utf-8"))).get("info"))
    except (OSError, ValueError):
        return {}
    return info if info.get("step") == made_of.get("step") else {}


def _measured(folders: Iterable[Path], wanted: Any) -> tuple[list[Measured], list[str]]:
    """The results in folders, and the names of those that are none or not `wanted`."""
    measured, unread = [], []
    for file in sorted(file for folder in folders for file in folder.glob("*.json"))[:_MOST_RESULTS]:
        try:
            one = Measured.read(file)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            unread.append(file.name)
            continue
        if wanted(one):
            measured.append(one)
        else:
            unread.append(file.name)
    return measured, unread


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
