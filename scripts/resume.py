"""What `flowleap train resume=...` goes on with: a run's configuration, a checkpoint of it, and the data it knows."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flowleap.datasets.digest import differences
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.hub import Address
from flowleap.policy.core.spec import WINDOW
from flowleap.scripts.cli.compose import RENAMED, given_overrides
from flowleap.scripts.cli.paths import escaped
from flowleap.scripts.common import plain, run_dir_of

CONFIG = "config.yaml"
_OF_RESUMING = ("resume", "resume_other_data", "dataset")
_CHANGEABLE = ("trainer.", "eval.", "objective.teacher")


@dataclass(frozen=True)
class Resumed:
    """A run that goes on.

    Attributes:
        run_dir: of the run.
        checkpoint: the directory to go on from.
        cfg: the run's configuration with this call's trainer.*, eval.* and dataset on top.
        keys: the columns that the policy observes, in its order.
        info: what the checkpoint notes of its training.
    """

    run_dir: Path
    checkpoint: Path
    cfg: DictConfig
    keys: list[str]
    info: Mapping[str, Any]

    @property
    def finished(self) -> str:
        """The line that says so where no step is left to do, else empty."""
        done, trainer = self.info.get("step"), self.cfg.trainer
        last = trainer.stop_at or trainer.steps
        if not isinstance(done, int) or not isinstance(last, int) or done < last:
            return ""
        more = f"`flowleap train {shlex.quote(f'resume={self.run_dir}')} trainer.steps={2 * done}` trains on"
        return f"{self.checkpoint} has {done} steps of {last}, nothing is left to do; {more}"

    @contextmanager
    def data_errors(self) -> Iterator[None]:
        """Let what is wrong with the data say that they may be somewhere else."""
        try:
            yield
        except FlowleapError as error:
            raise FlowleapError(
                f"{error}; if the data of {self.run_dir} are elsewhere now, add dataset=PLACE"
            ) from error

    def has_other_data(self, digest: Mapping[str, Any]) -> bool:
        """Whether the data are not those that the run was trained on; raise `FlowleapError` if nobody asked for it."""
        stored = self.info.get("data")
        if not isinstance(stored, dict):  # a run of flowleap 0.1
            counts = {key: self.info.get(key) for key in ("episodes", "frames")}
            stored = {key: count for key, count in counts.items() if isinstance(count, int)}
            if self.info.get("mirrored") and "frames" in stored:
                stored["frames"] //= 2
        found = differences(stored, digest)
        if found and not self.cfg.resume_other_data:
            raise FlowleapError(
                f"{self.cfg.dataset} holds other data than {self.run_dir} was trained on: {', '.join(found)}; give "
                "the run's own with dataset=PLACE, or train on with these: resume_other_data=true"
            )
        return bool(found)


def resumed(cfg: DictConfig) -> Resumed:
    """The run, or the checkpoint of a run, that `cfg.resume` names.

    Raises:
        FlowleapError: there is none, it cannot be read, or an option is given that cannot change.
    """
    from flowleap.policy.checkpoint import notes, read_manifest, resolve

    if Address.parse(cfg.resume, "model"):
        raise FlowleapError(
            f"resume={cfg.resume}: a policy of the Hub can act and be exported, not trained further: the state of its "
            "optimiser stays with its run; give a run directory of this machine"
        )
    place = Path(cfg.resume)
    if not place.exists():
        raise FlowleapError(f"resume={place} does not exist; give the run directory that `train` printed")
    if (place / CONFIG).is_file() and not (place / "checkpoints").exists():
        raise FlowleapError(
            f"resume={place}: the run has no checkpoint yet; start it again with run_dir={place}"
        )
    checkpoint = resolve(place)
    run_dir = place if (place / CONFIG).is_file() else run_dir_of(checkpoint)
    spec, info = notes(checkpoint, read_manifest(checkpoint))
    return Resumed(run_dir, checkpoint, _stored(run_dir, cfg), [*spec.observations], info)


def _stored(run_dir: Path, cfg: DictConfig) -> DictConfig:
    """The stored configuration of a run with this call's overrides on top."""
    file = run_dir / CONFIG
    if not file.is_file():
        raise FlowleapError(f"{file} does not exist: {run_dir} can act but not resume")
    given = [word.partition("=")[0].lstrip("+") for word in given_overrides()]
    for key in given:
        if key not in _OF_RESUMING and not key.startswith(_CHANGEABLE):
            raise FlowleapError(
                f"'{key}' cannot change when a run is resumed; only trainer.*, eval.* and dataset can"
            )
    try:
        stored: Any = OmegaConf.load(file)
        for old, new in RENAMED["train"].items():  # whichever version stored it
            value = stored.pop(old, None)
            if value is not None:
                OmegaConf.update(stored, new, value)
        for name, default in asdict(WINDOW).items():
            if stored.get(name) is None:  # it was the task's
                stored[name] = OmegaConf.select(stored, f"task.{name}") or default
        if OmegaConf.select(stored, "encoder.weights"):  # a file to start from
            stored.encoder.weights = None
        stored.trainer.stop_at = 0  # where the last call was to stop, not the run
        for key in (*(key for key in given if key != "dataset"), "resume_other_data"):
            OmegaConf.update(stored, key, escaped(plain(OmegaConf.select(cfg, key))))
        if cfg.dataset is not None:
            stored.dataset = escaped(cfg.dataset)
    except Exception as error:
        raise FlowleapError(f"{file}: not readable ({error}); the run cannot be resumed") from error
    assert isinstance(stored, DictConfig)
    return stored
