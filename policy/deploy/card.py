"""The model card of a pushed policy: what it sees and does, what was measured, how to load it, where it came from.

Names, tasks and numbers come out of files that may be somebody else's. Each is written as code in a cell of a table,
where neither Markdown nor HTML means anything, and the front matter by a YAML writer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flowleap.policy.core.hub import Address
from flowleap.policy.core.spec import ObsKey, Spec
from flowleap.policy.core.versions import flowleap_version

_LONGEST = 100  # of a text in the card
_MAX_BYTES = 2**26  # of a results file
_DELAYED = (
    "delay",
    "execute",
    "continuity",
)  # of an evaluation with a delay: without one, they change nothing


@dataclass(frozen=True)
class Measured:
    """One results file of `flowleap eval`, as far as a card names it.

    Attributes:
        metric: the task's headline, `success`, `max_reward` or `sum_reward`; `value` and `interval` (95 %) are its.
        success: (count, n), rate and Wilson interval; None where the task does not report it.
        settings: options of the evaluation that change what is measured.
        training_step: of the weights; None where the file does not say (exports).
    """

    file: str
    task: str
    kind: str
    weights: str
    nfe: int
    episodes: int
    first_seed: int
    metric: str
    value: float
    interval: tuple[float, float]
    success: tuple[int, int, tuple[float, float]] | None
    settings: dict[str, Any]
    training_step: int | None
    versions: dict[str, str]

    @classmethod
    def read(cls, file: Path) -> Measured:
        """Read a results file.

        Raises:
            OSError, ValueError, TypeError, KeyError: it is none.
        """
        if file.stat().st_size > _MAX_BYTES:
            raise ValueError("too large")
        data = json.loads(file.read_text(encoding="utf-8"))
        summary, actor, config = data["summary"], data["actor"], data.get("config") or {}
        headline, success = summary["headline"], summary["success"]
        training = actor.get("training") or {}
        versions = (data.get("origin") or {}).get("versions") or {}
        names = ("n_action_steps", *(_DELAYED if config.get("delay") else ()))
        return cls(
            file=file.name,
            task=str(summary["task"]),
            kind=str(actor["kind"]),
            weights=str(actor.get("weights", "")),
            nfe=_whole(data["nfe"]),
            episodes=_whole(summary["episodes"]),
            first_seed=_whole(data["seeds"]["first"]),
            metric=str(headline["metric"]),
            value=_number(headline["value"]),
            interval=_interval(headline["interval"]),
            success=(_whole(success["count"]), _whole(success["n"]), _interval(success["interval"]))
            if summary.get("reports_success", True)
            else None,
            settings={k: config[k] for k in names if config.get(k) not in (None, 0, "")},
            training_step=_whole(training["step"]) if "step" in training else None,
            versions={str(name): str(version) for name, version in dict(versions).items()},
        )


@dataclass(frozen=True)
class Subject:
    """The policy that a card is about.

    Attributes:
        kind: `checkpoint` (for torch) or `export` (for onnxruntime).
        nfe: of an export, fixed in it; of a checkpoint, None.
        config: the policy's parts by registry name.
        info: the notes of its training; empty where they are not known.
        versions: of what wrote it.
        measured: what was found beside it; `unread` names files that were passed over.
    """

    kind: Literal["checkpoint", "export"]
    spec: Spec
    nfe: int | None
    config: Mapping[str, Any]
    info: Mapping[str, Any]
    versions: Mapping[str, Any]
    measured: Sequence[Measured] = ()
    unread: Sequence[str] = field(default_factory=list)


def card(subject: Subject, to: Address, license: str | None = None) -> str:
    """The README.md of the repository `to`."""
    task = subject.info.get("task")
    name = task.get("name") if isinstance(task, Mapping) else None
    purpose = f"for {code(name)}" if name else "for data without a task"
    what = "an export for onnxruntime" if subject.kind == "export" else "a checkpoint"
    parts = [
        _front_matter(subject, license),
        f"# {to.name.partition('/')[2]}",
        f"A robot policy {purpose}, trained with flowleap; this is {what}.",
        "## What it sees and does",
        _inputs(subject.spec),
        _rhythm(subject.spec),
        "## Measured",
        _results(subject),
        "## Use",
        _usage(subject, to, name),
        "## Origin",
        _origin(subject),
    ]
    return "\n\n".join(parts) + "\n"


def code(value: Any) -> str:
    """A text as code that ends nowhere but at its end, also in a cell of a table."""
    text = "".join(char if char.isprintable() else " " for char in str(value))
    text = " ".join(text.replace("`", "'").replace("|", "¦").split()) or "(empty)"
    return f"`{text if len(text) <= _LONGEST else text[: _LONGEST - 1] + '…'}`"


def _front_matter(subject: Subject, license: str | None) -> str:
    from huggingface_hub import ModelCardData

    known = dataset_of(subject.info)
    facts: dict[str, Any] = {
        "license": license,
        "library_name": "flowleap",
        "pipeline_tag": "robotics",
        "tags": ["robotics", "flowleap", "imitation-learning"],
        "datasets": [known.name] if isinstance(known, Address) else None,
    }
    data = ModelCardData(**{key: value for key, value in facts.items() if value is not None})
    return f"---\n{data.to_yaml().strip()}\n---"


def dataset_of(info: Mapping[str, Any]) -> Address | str | None:
    """The dataset of the Hub that a policy was trained on, or the name of the file; never where it lay."""
    path = info.get("dataset")
    if not isinstance(path, str) or not path:
        return None
    if path.startswith("hf://"):
        name, _, revision = path.removeprefix("hf://").partition("@")
        if re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
            return Address(name, revision or None, "dataset")
    return Address.cached_at(path) or re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _inputs(spec: Spec) -> str:
    rows = [
        (
            code(key),
            code([spec.n_obs_steps, *obs.shape]),
            code(obs.dtype if obs.image else "float32"),
            _unit(obs),
        )
        for key, obs in spec.observations.items()
    ]
    action = f"{spec.action_convention} actions, in the units of the dataset"
    rows.append(("action", code([spec.n_action_steps, spec.action_dim]), "float32", action))
    return (
        _table(("observation", "shape", "dtype", "what"), rows[:-1])
        + "\n\n"
        + _table(("returned", "shape", "dtype", "what"), rows[-1:])
    )


def _unit(obs: ObsKey) -> str:
    if obs.kind == "rgb":
        what = "RGB image, 0 to 255"
    elif obs.kind == "depth":
        low, high = obs.range or (0.0, 0.0)
        what = f"depth image in {code(obs.unit or '?')}, {low:.4g} to {high:.4g}; 0 is not measured"
    elif obs.kind == "points":
        what = (
            f"points, {'xyz' if obs.shape[1] == 3 else 'xyz and rgb'}, in the frame and units of the dataset"
        )
    else:
        what = "numbers, in the units of the dataset"
    camera = " x ".join(map(str, obs.camera_shape[:2]))
    return f"{what}; or the camera's own frames, {camera}" if obs.views else what


def _rhythm(spec: Spec) -> str:
    rate = f"at {spec.control_hz:g} actions a second" if spec.control_hz else "at the rate of the dataset"
    return (
        "Shapes are those of one sample, without the batch axis. The first axis of an observation is time, the current "
        f"frame last. The policy predicts {spec.horizon} actions, of which {spec.n_action_steps} are to be executed "
        f"{rate} before it is asked again; the first belongs to the current frame."
    )


def _results(subject: Subject) -> str:
    left = (
        f" Not counted, as they are of other weights or not readable: {', '.join(map(code, subject.unread))}."
    )
    left = left if subject.unread else ""
    if not subject.measured:
        return f"Nothing was measured: no results of `flowleap eval` lay beside this policy when it was pushed.{left}"
    rows = []
    for one in subject.measured:
        success = "not reported"
        if one.success is not None:
            count, n, interval = one.success
            low, high = (f"{100 * bound:.1f}" for bound in interval)
            success = f"{count}/{n} = {100 * count / max(n, 1):.1f} % [{low}, {high}]"
        low, high = (f"{bound:.3f}" for bound in one.interval)
        rewards = {"max_reward": "mean max reward", "sum_reward": "mean return"}
        other = f"{rewards[one.metric]} {one.value:.3f} [{low}, {high}]" if one.metric in rewards else "-"
        policy = "export" if one.kind == "export" else f"torch, {code(one.weights)} weights"
        settings = ", ".join(code(f"{k}={v}") for k, v in one.settings.items()) or "-"
        seeds = f"{one.first_seed} to {one.first_seed + one.episodes - 1}"
        rows.append((code(one.task), policy, one.nfe, success, other, one.episodes, seeds, settings))
    head = ("task", "policy", "NFE", "success", "reward", "episodes", "seeds", "settings")
    versions = sorted({(name, version) for one in subject.measured for name, version in one.versions.items()})
    listed = _table(("package", "version"), [(code(name), code(version)) for name, version in versions])
    return (
        f"{_table(head, rows)}\n\nIn simulation, by `flowleap eval`. NFE: network function evaluations a chunk. "
        "Brackets are intervals of 95 %: Wilson's for success, a bootstrap over episodes for rewards; they count "
        f"episodes, not training seeds. Episode i starts from seed first + i.{left}\n\n{listed}"
    )


def _usage(subject: Subject, to: Address, task: Any) -> str:
    words = [f"flowleap eval checkpoint={to}"]
    best = next(iter(subject.measured), None)
    if best is not None:
        words.append(f"episodes={best.episodes} seed={best.first_seed}")
    if subject.kind == "checkpoint":
        words.append(f"steps={best.nfe}" if best is not None else "")
    if not task:
        words.append("task=NAME")
    commands = [" ".join(word for word in words if word)]
    if subject.kind == "checkpoint":
        commands.append(f"flowleap export checkpoint={to}")
    pin = f"{to}@COMMIT" if to.revision is None else f"hf://{to.name}@COMMIT"
    shell = _fenced("sh", commands)
    return (
        f"With flowleap {flowleap_version()} or newer. In simulation:\n\n{shell}\n\n{_in_python(subject, to)}\n\n"
        f"`{pin}` pins a version. Loading runs no code from the files and reads no pickle. "
        "Limits of joints, forces and workspace belong on the robot: a policy may command anything."
    )


def _in_python(subject: Subject, to: Address) -> str:
    spec = subject.spec
    library, loader, name = (
        ("numpy as np", "from flowleap.policy.deploy.runtime import ExportedPolicy", "ExportedPolicy")
        if subject.kind == "export"
        else ("torch", "from flowleap.policy.policy import Policy", "Policy")
    )
    module = library.rpartition(" ")[2]
    lines = [f"import {library}", loader, "", f'policy = {name}.load("{to}")', "observation = {"]
    for key, obs in spec.observations.items():
        shape = ", ".join(map(str, (1, spec.n_obs_steps, *obs.shape)))
        dtype = "uint8" if obs.kind == "rgb" else "float32"
        lines.append(f"    {json.dumps(key)}: {module}.zeros(({shape}), dtype={module}.{dtype}),")
    lines.append("}  # your own: [batch, time, ...], the current frame last")
    shape = ", ".join(map(str, (1, spec.n_action_steps, spec.action_dim)))
    lines.append(f"actions = policy.act(observation)  # [{shape}], in the units of the dataset")
    where = "without torch (numpy and onnxruntime)" if subject.kind == "export" else "with torch"
    return f"In Python, {where}:\n\n{_fenced('python', lines)}"


def _origin(subject: Subject) -> str:
    info, config = subject.info, subject.config
    trainer = info.get("trainer")
    trainer = trainer if isinstance(trainer, Mapping) else {}
    named = {part: config.get(part) for part in ("objective", "backbone", "encoder")}
    rows: list[tuple[str, Any]] = [
        (part, value.get("name") if isinstance(value, Mapping) else value) for part, value in named.items()
    ]
    rows.append(("NFE, fixed in the export", subject.nfe))
    rows.append(("dataset", dataset_of(info)))
    rows += [(f"its {name}", info.get(name)) for name in ("episodes", "frames")]
    rows.append(("steps of training", info.get("step")))
    rows += [(name.replace("_", " "), trainer.get(name)) for name in ("batch_size", "seed")]
    rows += [(f"{code(name)} that wrote it", version) for name, version in subject.versions.items()]
    versions = subject.spec.source.get("versions")
    if isinstance(versions, Mapping):
        rows += [(f"{code(name)} of the data", version) for name, version in versions.items()]
    return _table(("", ""), [(name, code(value)) for name, value in rows if value is not None])


def _table(head: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _fenced(language: str, lines: Iterable[str]) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is no whole number")
    return value


def _interval(value: Any) -> tuple[float, float]:
    low, high = value
    return _number(low), _number(high)
