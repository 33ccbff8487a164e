"""Write a checkpoint as ONNX, to act without torch: normaliser, encoder, head at a fixed NFE, unnormaliser.

    flowleap export checkpoint=RUN_DIR
    flowleap export checkpoint=RUN_DIR steps=4 out=door_nfe4
    flowleap eval checkpoint=RUN_DIR/export_nfe1       roll the export out

The export is compared with the eager policy on observations of the dataset before it appears.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from flowleap.datasets.dataset import open_dataset
from flowleap.envs.registry import make_task
from flowleap.envs.task_data import load_columns
from flowleap.policy.core.files import write_results
from flowleap.policy.core.spec import Spec

PARITY_WINDOWS = 1024


def main(cfg: DictConfig) -> Path:
    """Export `cfg.checkpoint`, print parity and latency, and return the exported folder."""
    from flowleap.policy.checkpoint import resolve
    from flowleap.policy.deploy.export import export
    from flowleap.policy.policy import Policy

    policy = Policy.load(cfg.checkpoint, cfg.weights)
    steps = policy.objective.check_steps(cfg.steps)
    out = Path(cfg.out) if cfg.out else _run_dir(resolve(Path(cfg.checkpoint))) / f"export_nfe{steps}"
    console = Console()
    observations = _observations(cfg.dataset, policy.info, policy.spec)
    if observations is None:
        where = policy.info.get("dataset") or "unknown"
        console.print(
            f"training dataset ({where}) not found: comparing on synthetic observations", soft_wrap=True
        )
    report = export(policy, out, steps, observations=observations, tolerance=float(cfg.tolerance))
    _print_report(console, report)
    if cfg.results:
        path = write_results(
            cfg.results, {"command": f"flowleap export checkpoint={cfg.checkpoint}", **report}
        )
        console.print(f"results: {path}", highlight=False, soft_wrap=True)
    console.print(f"exported: {out}", highlight=False, soft_wrap=True)
    return out


def _run_dir(checkpoint: Path) -> Path:
    """The run directory of a checkpoint, or the checkpoint itself if it lies in none."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint


def _observations(dataset: str | None, info: Mapping[str, Any], spec: Spec) -> dict[str, np.ndarray] | None:
    """Windows spread over the dataset, {key: [N, To, *shape]}; None if the training dataset is not here."""
    if dataset is None:
        dataset = info.get("dataset")
        if not isinstance(dataset, str) or not Path(dataset).exists():
            return None
    trained_on = info.get("task")
    task = None
    if isinstance(trained_on, dict) and isinstance(trained_on.get("name"), str):
        kwargs = trained_on.get("kwargs")
        task = make_task(trained_on["name"], **(kwargs if isinstance(kwargs, dict) else {}))
    with open_dataset(dataset) as opened:
        data = load_columns(task, opened)
    spec.require_match(data.spec, "the checkpoint", f"dataset {dataset}")
    windows = data.windows(spec.n_obs_steps, spec.horizon, spec.n_action_steps)
    index = np.linspace(0, len(windows) - 1, min(PARITY_WINDOWS, len(windows))).astype(np.int64)
    return windows.gather(index)["obs"]


def _print_report(console: Console, report: Mapping[str, Any]) -> None:
    parity, latency = report["parity"], report["latency"]
    table = Table("batch", "draws", "max abs error", "relative to the action range")
    for case in parity["cases"]:
        table.add_row(
            str(case["batch"]), str(case["draws"]), f"{case['max_abs']:.2e}", f"{case['max_relative']:.2e}"
        )
    console.print(
        f"parity with eager torch at NFE {report['steps']}, {parity['windows']} {parity['observations']} "
        f"observations, tolerance {parity['tolerance']:g}:",
        highlight=False,
        soft_wrap=True,
    )
    console.print(table)
    console.print(
        "latency, batch 1, one thread, p50 / p95 ms: "
        + ", ".join(
            f"{name} {latency[name]['p50_ms']:.3f} / {latency[name]['p95_ms']:.3f}"
            for name in ("onnxruntime", "eager")
        )
        + f" ({latency['speedup']:.1f}x at p50)",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    import sys

    from flowleap.scripts.cli.main import run_verb

    sys.exit(run_verb("export", sys.argv[1:]))
