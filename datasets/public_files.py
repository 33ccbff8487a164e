"""Public demonstration files that `flowleap download` knows: where they are, and what they become here."""

from __future__ import annotations

from dataclasses import dataclass

# The revision of 2025 that robomimic 0.4 and later name; a fixed one, so that everybody trains on the same bytes.
_ROBOMIMIC_REVISION = "74fa018461f479cd9fd15b924a16103012096203"
# Where the registry of robomimic 0.3 has its files, which nobody publishes checksums of.
_ROBOMIMIC_V141 = "https://downloads.cs.stanford.edu/downloads/rt_benchmark"
_ROBOMIMIC = {"ph": "proficient human", "mh": "multi-human, better and worse"}
_BOTH = ("ph", "mh")
_TASKS = {"lift": _BOTH, "can": _BOTH, "square": _BOTH, "transport": _BOTH, "tool_hang": ("ph",)}


@dataclass(frozen=True)
class HubFile:
    """A file in a dataset repository of the Hugging Face Hub, whose LFS entry holds its SHA-256."""

    repository: str
    revision: str
    path: str


@dataclass(frozen=True)
class WebFile:
    """A file behind a plain address; `sha256` where its publisher names one."""

    url: str
    sha256: str | None = None


@dataclass(frozen=True)
class Public:
    """One entry of the list.

    Attributes:
        about: one line: what it is, and its licence.
        file: where it is.
        suffix: of the file here; a `.zip` is unpacked into a folder.
    """

    about: str
    file: HubFile | WebFile
    suffix: str


PUBLIC = (
    {
        "pusht": Public(
            "Push-T, 206 human demonstrations, images and states, 10 Hz (Diffusion Policy, MIT)",
            WebFile("https://diffusion-policy.cs.columbia.edu/data/training/pusht.zip"),
            ".zip",
        )
    }
    | {
        f"robomimic/{task}_{kind}": Public(
            f"robomimic {task}, {_ROBOMIMIC[kind]} demonstrations, low-dim, 20 Hz (robosuite 1.5, MIT)",
            HubFile(
                "robomimic/robomimic_datasets", _ROBOMIMIC_REVISION, f"v1.5/{task}/{kind}/low_dim_v15.hdf5"
            ),
            ".hdf5",
        )
        for task, kinds in _TASKS.items()
        for kind in kinds
    }
    | {
        f"robomimic/{task}_{kind}_v141": Public(
            f"robomimic {task}, {_ROBOMIMIC[kind]}, low-dim, for task=robosuite/* (robosuite 1.4.1, MIT)",
            WebFile(f"{_ROBOMIMIC_V141}/{task}/{kind}/low_dim_v141.hdf5"),
            ".hdf5",
        )
        for task, kinds in _TASKS.items()
        for kind in kinds
    }
)
