"""The formats of `flowleap export`: their errors, speed and scores; and one step beside the hundred of DDPM.

All that is compared is timed in turn in one process, on one thread, at batch 1, observations checked and converted as
on a robot. DDPM-100 is the same network at a hundred steps; for its time it need not be trained so.
"""

from __future__ import annotations

import math
import platform
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from flowleap.envs.actors import load_actor, policy_actor
from flowleap.envs.comparison import paired_difference
from flowleap.envs.registry import make_task
from flowleap.envs.rollout import Episode, rollout
from flowleap.envs.statistics import mean, rate
from flowleap.policy.core.errors import UsageError
from flowleap.policy.core.spec import WINDOW
from flowleap.scripts.common import plain, recorded_task, say, show_table
from flowleap.scripts.export import dataset_observations

if TYPE_CHECKING:
    from flowleap.policy.deploy.runtime import ExportedPolicy
    from flowleap.policy.policy import Policy

# Name -> format, and whether the backbone stays as it was trained.
VARIANTS = {
    "onnx, as trained": ("onnx", True),
    "onnx": ("onnx", False),
    "onnx-int8": ("onnx-int8", False),
    "openvino": ("openvino", False),
    "openvino-bf16": ("openvino-bf16", False),
}
REDUCED = ("onnx-int8", "openvino-bf16")
BACKBONES = ("mlp", "transformer", "unet1d")


def measure(cfg: DictConfig) -> dict[str, Any]:
    """Export each of `cfg.checkpoints` in every format, compare with the policy, print and return the numbers."""
    import torch

    from flowleap.policy.policy import Policy

    if not cfg.checkpoints:
        raise UsageError("what=formats exports trained policies: checkpoints=[RUN_DIR,...]")
    torch.set_num_threads(cfg.threads)
    policies: dict[str, Any] = {}
    for place in plain(cfg.checkpoints):
        policy = Policy.load(place)
        observations = dataset_observations(cfg.dataset, policy)
        with tempfile.TemporaryDirectory() as folder:
            exports = export_all(policy, Path(folder), observations)
            report = _formats(cfg, policy, exports)
        report["network"] = {"backbone": policy.config["backbone"], "parameters": _parameters(policy)}
        report["observations"] = "dataset" if observations else "synthetic"
        _show(f"{policy.config['backbone']['name']}, {_parameters(policy):,} parameters", report)
        policies[Path(place).name] = report
    return {"processor": _processor(), "threads": cfg.threads, "policies": policies}


def export_all(
    policy: Policy, folder: Path, observations: Any = None, batches: Sequence[int] | None = None
) -> dict[str, ExportedPolicy]:
    """The policy in every variant, opened; errors are measured, not judged."""
    from flowleap.policy.deploy.export import export
    from flowleap.policy.deploy.runtime import ExportedPolicy

    exports: dict[str, ExportedPolicy] = {}
    for i, (name, (form, as_trained)) in enumerate(VARIANTS.items()):
        say(f"exporting: {name}")
        out = folder / str(i)
        options: dict[str, Any] = {"format": form, "convolutions": as_trained, "tolerance": math.inf}
        options["batches"] = batches
        export(policy, out, observations=observations, ddpm=False, **options)
        exports[name] = ExportedPolicy.load(out)
    return exports


def _formats(cfg: DictConfig, policy: Policy, exports: Mapping[str, ExportedPolicy]) -> dict[str, Any]:
    steps = next(iter(exports.values())).steps
    times = _times(policy, exports, steps, cfg.seconds)
    parity = {
        name: {
            key: exported.manifest["parity"][key]
            for key in (
                "max_relative",
                "rms_relative",
                "max_abs_per_dimension",
                "rms_per_dimension",
                "action_range",
            )
        }
        for name, exported in exports.items()
    }
    report: dict[str, Any] = {"nfe": steps, "latency": times, "parity": parity, **_ratios(times)}
    task = recorded_task(policy.info.get("task"))
    if task is None or not cfg.episodes:
        return report
    seeds = list(range(cfg.seed, cfg.seed + cfg.episodes))
    outcomes: dict[str, list[Episode]] = {}
    report["simulation"] = {"task": task.name, "seeds": seeds}
    actors = {"eager": policy_actor(policy, steps), **{name: exports[name].act for name in REDUCED}}
    for name, act in actors.items():
        outcomes[name] = rollout(task, act, policy.spec, seeds).episodes
        report["simulation"][name] = described = {
            "score": mean([e.max_reward for e in outcomes[name]]),
            "success": rate([e.success for e in outcomes[name]]),
            "scores": [e.max_reward for e in outcomes[name]],
            "successes": [e.success for e in outcomes[name]],
        }
        if name != "eager":
            for metric, field in (("score", "max_reward"), ("success", "success")):
                ours, theirs = ([float(getattr(e, field)) for e in outcomes[k]] for k in (name, "eager"))
                described[f"{metric}_difference"] = paired_difference([ours], [theirs])
    return report


def latency(cfg: DictConfig) -> dict[str, Any]:
    """Time a chunk at NFE 1 and of DDPM-100 for each backbone, eager and exported; print and return the numbers."""
    import torch

    from flowleap.policy.deploy.export import export
    from flowleap.policy.deploy.parity import as_ddpm
    from flowleap.policy.deploy.runtime import ExportedPolicy

    torch.set_num_threads(cfg.threads)
    networks: dict[str, dict[str, Any]] = {name: {"name": name} for name in BACKBONES}
    if cfg.large:
        networks["unet1d, large"] = {"name": "unet1d", "channels": plain(cfg.large), "time_dim": 256}
    report: dict[str, Any] = {"processor": _processor(), "threads": cfg.threads, "networks": {}}
    for title, backbone in networks.items():
        policy = _untrained(cfg.task.name, backbone)
        with tempfile.TemporaryDirectory() as folder:
            exports = export_all(policy, Path(folder), batches=(1,))
            say("exporting: DDPM-100")
            export(as_ddpm(policy), Path(folder) / "ddpm", 100, tolerance=math.inf, ddpm=False, batches=(1,))
            loop = ExportedPolicy.load(Path(folder) / "ddpm")
        times = _times(policy, {**exports, "ddpm100 onnx": loop}, 1, cfg.seconds)
        numbers = {"backbone": policy.config["backbone"], "parameters": _parameters(policy), "latency": times}
        report["networks"][title] = {**numbers, **_ratios(times)}
        _show(f"{title}, {_parameters(policy):,} parameters", report["networks"][title])
    return report


def chunk_times(
    places: Mapping[str, tuple[Path, int]], threads: int = 1, seconds: float = 2.0
) -> dict[str, Any]:
    """Time a chunk of policies and exports of the same observations, in turn, as the evaluator calls them.

    Args:
        places: label -> run or export, and its NFE; one of them a run, whose normaliser tells what is observed.

    Returns:
        `processor`, `threads`, and `times`: label -> p50, p95, cold in ms, see `time_in_turn`.
    """
    import torch

    from flowleap.policy.deploy.parity import synthetic_observations, time_in_turn
    from flowleap.policy.policy import Policy

    torch.set_num_threads(threads)
    policy = Policy.load(next(iter(places.values()))[0])
    obs = synthetic_observations(policy, 1)
    noise = np.zeros((1, policy.spec.horizon, policy.spec.action_dim), np.float32)
    actors = {label: load_actor(place, steps=nfe, device="cpu") for label, (place, nfe) in places.items()}
    times = time_in_turn({label: partial(actor.act, obs, noise) for label, actor in actors.items()}, seconds)
    slowest = max(times.values(), key=lambda entry: entry["p50_ms"])["p50_ms"]
    rows = [
        (label, f"{entry['p50_ms']:.3f}", f"{slowest / entry['p50_ms']:.0f}x")
        for label, entry in times.items()
    ]
    show_table(("", "p50 ms", "fits into the slowest"), rows, "a chunk, batch 1")
    return {"processor": _processor(), "threads": threads, "times": times}


# Objective and NFE of each combination.
STEPS = (("isd", 1), ("isd", 4), ("mip", 2), ("flow_matching", 10), ("ddpm", 10), ("ddpm", 100))
SMALL_BACKBONES: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp", "width": 64, "depth": 2},
    "transformer": {"name": "transformer", "width": 64, "depth": 1, "heads": 2},
    "unet1d": {"name": "unet1d", "channels": [16, 32], "time_dim": 16},
}
SMALL_ENCODERS: dict[str, dict[str, Any]] = {
    "lowdim": {"name": "lowdim"},
    "cnn": {"name": "cnn", "channels": [8, 8], "features": 64},
    "resnet18": {"name": "resnet18", "features": 8},
    "vit": {"name": "vit", "features": 8},
    "pointnet": {"name": "pointnet", "widths": [16, 32], "features": 8},
}


def combinations(cfg: DictConfig) -> dict[str, Any]:
    """Export small networks of every backbone, encoder and number of steps in every format; return their errors."""
    import torch

    from flowleap.policy.core.errors import FlowleapError
    from flowleap.policy.core.spec import ObsKey, Spec
    from flowleap.policy.deploy.export import FORMATS, export
    from flowleap.policy.policy import Policy

    torch.set_num_threads(cfg.threads)
    state = {"state": ObsKey((5,))}
    specs = {
        name: Spec({**state, "top": ObsKey((16, 16, 3), "uint8", "rgb")}, 2, 2, 8, 4)
        for name in SMALL_ENCODERS
    }
    specs["lowdim"] = Spec(state, 2, 2, 8, 4)
    specs["pointnet"] = Spec({**state, "cloud": ObsKey((32, 3), kind="points")}, 2, 2, 8, 4)
    rows: list[dict[str, Any]] = []
    for (objective, steps), encoder, backbone, form in product(
        STEPS, SMALL_ENCODERS, SMALL_BACKBONES, FORMATS
    ):
        torch.manual_seed(0)
        parts = {
            "objective": objective,
            "backbone": SMALL_BACKBONES[backbone],
            "encoder": SMALL_ENCODERS[encoder],
        }
        policy = Policy(specs[encoder], parts).eval()
        rng = np.random.default_rng(0)
        columns = {"state": (64, 5), "cloud": (64, 32, 3), "action": (64, 2)}
        policy.normalizer.fit({key: rng.normal(size=shape) for key, shape in columns.items()})
        with torch.no_grad():
            # Some blocks do nothing before training.
            for parameter in policy.net.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        row: dict[str, Any] = {"encoder": encoder, "backbone": backbone, "objective": objective, "nfe": steps}
        row["format"] = form
        with tempfile.TemporaryDirectory() as folder:
            try:
                report = export(
                    policy,
                    Path(folder) / "out",
                    steps,
                    format=form,
                    tolerance=math.inf,
                    ddpm=False,
                    batches=(1, 3),
                )
                row |= {key: report["parity"][key] for key in ("max_relative", "rms_relative")}
            except FlowleapError as error:
                row["error"] = str(error).splitlines()[0]
        say(", ".join(f"{key} {value}" for key, value in row.items()))
        rows.append(row)
    failed = [row for row in rows if "error" in row]
    say(f"{len(rows) - len(failed)} of {len(rows)} combinations export")
    return {"exported": len(rows) - len(failed), "combinations": rows}


def _times(
    policy: Policy, exports: Mapping[str, ExportedPolicy], steps: int, seconds: float
) -> dict[str, dict[str, float]]:
    """The time of a chunk of each export, of the policy, and of DDPM-100 with its network."""
    from flowleap.policy.deploy.parity import as_ddpm, eager_chunk, synthetic_observations, time_in_turn

    obs, many = synthetic_observations(policy, 1), as_ddpm(policy)
    noise = np.zeros((1, policy.spec.horizon, policy.spec.action_dim), np.float32)
    calls: dict[str, Callable[[], Any]] = {
        name: partial(exported.chunk, obs, noise) for name, exported in exports.items()
    }
    calls["eager"] = partial(eager_chunk, policy, obs, noise, steps)
    calls["ddpm100 eager"] = partial(eager_chunk, many, obs, noise, 100)
    return time_in_turn(calls, seconds)


def _ratios(times: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Each time over that of float32 as trained, and that of eager DDPM-100 over each."""
    p50 = {name: entry["p50_ms"] for name, entry in times.items()}
    return {
        "over_onnx_as_trained": {name: value / p50["onnx, as trained"] for name, value in p50.items()},
        "faster_than_ddpm100_eager": {name: p50["ddpm100 eager"] / value for name, value in p50.items()},
    }


def _untrained(task: str, backbone: Mapping[str, Any]) -> Policy:
    """A policy of random weights for a task's shapes: speed does not depend on their values."""
    import torch

    from flowleap.policy.policy import Policy

    torch.manual_seed(0)
    spec = make_task(task).spec.with_window(**asdict(WINDOW))
    policy = Policy(spec, {"objective": "isd", "backbone": backbone, "encoder": "lowdim"}).eval()
    rng = np.random.default_rng(0)
    shapes = {**{key: obs.shape for key, obs in spec.observations.items()}, "action": (spec.action_dim,)}
    policy.normalizer.fit({key: rng.uniform(-1, 1, (64, *shape)) for key, shape in shapes.items()})
    return policy


def _parameters(policy: Policy) -> int:
    return sum(parameter.numel() for parameter in policy.net.parameters())


def _processor() -> str:
    """The processor, and whether it has instructions for int8, as far as Linux says."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    name = re.search(r"^model name\s*: (.*)$", text, re.M)
    if name is None:
        return platform.processor() or platform.machine()
    return f"{name[1]}, {'with' if 'vnni' in text else 'without'} VNNI"


def _show(title: str, report: Mapping[str, Any]) -> None:
    rows = []
    for name, times in report["latency"].items():
        row = [name, f"{times['p50_ms']:.3f}", f"{times['cold_ms']:.3f}"]
        row += [
            f"{report['over_onnx_as_trained'][name]:.2f}x",
            f"{report['faster_than_ddpm100_eager'][name]:.0f}x",
        ]
        parity = report.get("parity", {}).get(name)
        row.append(f"{parity['rms_relative']:.1e}" if parity else "")
        scored = report.get("simulation", {}).get(name)
        text = f"{scored['score']['mean']:.3f}" if scored else ""
        if scored and "score_difference" in scored:
            low, high = scored["score_difference"]["interval"]
            text += f", {scored['score_difference']['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"
        rows.append([*row, text])
    head = (
        "",
        "p50 ms",
        "cold ms",
        "over f32 as trained",
        "over DDPM-100 eager",
        "rms error / range",
        "score",
    )
    show_table(head, rows, title)
