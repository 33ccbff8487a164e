"""The verbs of the command line: what they do, an example, and the script behind each."""

from __future__ import annotations

from typing import NamedTuple


class Verb(NamedTuple):
    """What the overview says about a verb, and where it lives.

    Attributes:
        summary, example: for people.
        script: the module below `flowleap.scripts` whose `main` runs the verb.
        word: the option whose value may stand alone: `flowleap download pusht`.
    """

    summary: str
    example: str
    script: str
    word: str = ""


VERBS = {
    "train": Verb(
        "train a one-step policy on a dataset",
        "flowleap train task=pusht/keypoints dataset=data/pusht.zarr",
        "train",
    ),
    "eval": Verb(
        "roll a checkpoint or an exported policy out and score it",
        "flowleap eval checkpoint=runs/pusht/checkpoints/last episodes=50 steps=1",
        "evaluate",
    ),
    "export": Verb(
        "write a checkpoint as ONNX, to act without torch",
        "flowleap export checkpoint=runs/pusht/checkpoints/last",
        "export",
    ),
    "collect": Verb(
        "record demonstrations of a task's scripted expert",
        "flowleap collect task=metaworld/door-open-v3 episodes=100",
        "collect",
    ),
    "convert": Verb(
        "rewrite a dataset in another format, by default as a flowleap store",
        "flowleap convert source=pusht_cchi_v7_replay.zarr out=data/pusht.zarr",
        "convert",
    ),
    "inspect": Verb(
        "show what a dataset holds",
        "flowleap inspect dataset=data/pusht.zarr",
        "inspect_dataset",
    ),
    "download": Verb(
        "fetch public demonstrations: robomimic, Push-T",
        "flowleap download robomimic/lift_ph",
        "download",
        word="name",
    ),
    "view": Verb(
        "show an episode in the Rerun viewer",
        "flowleap view dataset=data/pusht.zarr episode=0",
        "view",
    ),
    "replay": Verb(
        "execute recorded actions in the simulator: do dataset and task agree?",
        "flowleap replay task=pusht/keypoints dataset=pusht_cchi_v7_replay.zarr",
        "replay",
    ),
    "list": Verb(
        "list tasks, objectives, backbones, encoders and formats",
        "flowleap list what=tasks",
        "list_choices",
    ),
    "doctor": Verb(
        "check this machine: versions, GPU, rendering, optional parts",
        "flowleap doctor",
        "doctor",
    ),
    "benchmark": Verb(
        "compare objectives on equal terms, over training seeds",
        "flowleap benchmark task=pusht/keypoints dataset=data/pusht.zarr",
        "studies.benchmark",
    ),
    "gradients": Verb(
        "gradient norms of objectives over training, as a plot",
        "flowleap gradients task=pusht/keypoints dataset=data/pusht.zarr",
        "studies.gradients",
    ),
    "toy": Verb(
        "train an objective on a 2-D density and draw what it samples",
        "flowleap toy objective=isd",
        "studies.toy",
    ),
    "speed": Verb(
        "time training steps and the loader on this machine",
        "flowleap speed backbone=mlp batch_size=128",
        "studies.speed",
    ),
    "demo": Verb(
        "the whole path on one simulated task, in minutes",
        "flowleap demo",
        "demo",
    ),
}
