"""Show an episode in the Rerun viewer: cameras, observations and actions on one time line.

flowleap view dataset=data/pusht.zarr episode=3                    opens the viewer
flowleap view dataset=data/pusht.zarr episode=3 save=three.rrd     writes a recording; `rerun three.rrd` opens it

Reads every format that `flowleap list what=formats` shows. Needs `pip install 'flowleap[viewer]'`; writing a recording
needs no display.
"""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from flowleap.datasets.dataset import open_dataset
from flowleap.datasets.quality.viewer import check_target, show
from flowleap.policy.core.errors import optional_import
from flowleap.scripts.cli.main import run_verb
from flowleap.scripts.common import selected


def main(cfg: DictConfig) -> None:
    """Stream `cfg.episode` of `cfg.dataset` to a viewer, or write it to `cfg.save`."""
    optional_import("rerun", extra="viewer")  # said before any work is done
    target = check_target(cfg.save)
    with open_dataset(cfg.dataset, **selected(cfg)) as dataset:
        frames = show(dataset, cfg.episode, target)
    print(frames if target is None else f"{target}: {frames}; open it with: rerun {target}")


if __name__ == "__main__":
    sys.exit(run_verb("view"))
