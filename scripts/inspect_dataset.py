"""Show what a dataset holds: its Spec, its episodes, statistics of every column, and what is suspicious.

    flowleap inspect dataset=data/pusht.zarr
    flowleap inspect dataset=data/pusht.zarr html=report.html

Reads every format that `flowleap list what=formats` shows. NaN and infinity are counted here, where training would
stop at them. A dimension is constant if it has one value in all frames. Suspicious are, among others, NaN, constant
dimensions, angles that wrap, quaternions whose sign flips, idle stretches, actions that are clipped, jump, are late or
missing, gaps between time stamps, outliers that set a range, cameras that stand still, and episodes that are there
twice; each comes with the options that leave it out or repair it. `html=report.html` writes the same with plots, as
one page without any reference to the network.
"""

from __future__ import annotations

import sys

from omegaconf import DictConfig
from rich.console import Console

from flowleap.datasets.dataset import detect, open_dataset
from flowleap.datasets.quality.checks import Checks
from flowleap.datasets.quality.page import render
from flowleap.datasets.quality.profile import Profile
from flowleap.datasets.quality.text import print_report
from flowleap.datasets.quality.web_page import check_name, write_page
from flowleap.scripts.cli.main import run_verb
from flowleap.scripts.common import selected


def main(cfg: DictConfig) -> None:
    """Print the description of `cfg.dataset`, and write it as a page if asked."""
    page = check_name("html", cfg.html) if cfg.html else None
    name = detect(cfg.dataset)
    console = Console(soft_wrap=True, highlight=False)
    console.width = max(console.width, 110)
    with open_dataset(cfg.dataset, name, lenient=True, **selected(cfg)) as source:
        checks = Checks(source)
        window = (cfg.n_obs_steps, cfg.horizon, cfg.n_action_steps)
        profile = Profile(source, checks, window, cfg.image_episodes)
        print_report(console, name, source, checks, profile)
        if page is not None:
            write_page("html", page, render(name, source, checks, profile))
            console.print(f"\nwritten: {page}", markup=False)


if __name__ == "__main__":
    sys.exit(run_verb("inspect"))
