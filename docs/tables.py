"""Write the README's tables from docs/results/*.json, so that no number is typed by hand.

python docs/tables.py            rewrite README.md between the markers
python docs/tables.py --check    exit with 1 if README.md is not what the results say
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"


def load(name: str) -> dict[str, Any]:
    """Read one results file."""
    data: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return data


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def pusht() -> str:
    """Push-T: every objective and NFE on equal terms."""
    result = load("pusht_keypoints")
    rows = []
    for row in result["table"]:
        success = row["success"]
        rows.append(
            [
                row["objective"],
                str(row["nfe"]),
                f"{row['mean_max_reward']:.3f} ± {row['seed_sd']:.3f}",
                " ".join(f"{x:.3f}" for x in row["per_seed"]),
                f"{success['count']}/{success['n']} [{success['interval'][0]:.2f}, {success['interval'][1]:.2f}]",
                f"{sum(row['train_minutes']) / len(row['train_minutes']):.0f}",
            ]
        )
    head = [
        "objective",
        "NFE",
        "mean max reward ± sd",
        "each training seed",
        "success [95 % Wilson]",
        "train, min",
    ]
    differences = [
        f"{d['b'][0]} at NFE {d['b'][1]}: {d['mean']:+.3f} [{d['interval'][0]:+.3f}, {d['interval'][1]:+.3f}]"
        for d in result["paired_differences"]
    ]
    return (
        table(head, rows)
        + "\n\niSD at NFE 1 minus, paired by evaluation seed, 95 % bootstrap: "
        + "; ".join(differences)
        + "."
    )


def metaworld() -> str:
    """MetaWorld tasks at one network call."""
    rows = []
    for file in sorted(RESULTS.glob("metaworld_*.json")):
        result = load(file.stem)
        row = result["table"][0]
        success = row["success"]
        low, high = success["interval"]
        rows.append(
            [
                result["config"]["task"]["name"],
                str(row["nfe"]),
                f"{success['count']}/{success['n']}",
                f"[{low:.2f}, {high:.2f}]",
                f"{row['train_minutes'][0]:.0f}",
            ]
        )
    return table(["task", "NFE", "success", "95 % Wilson", "train, min"], rows)


def speed() -> str:
    """Training step, loader and deployed latency."""
    steps, export = load("speed_unet1d"), load("export_pusht_keypoints")
    ratio, loader, latency = steps["ratio_to_flow_matching"], steps["loader"], export["latency"]
    size = f"U-Net {steps['parameters'] / 1e6:.1f} M, batch {steps['config']['batch_size']}"
    worst = max(case["max_relative"] for case in export["parity"]["cases"])
    rows = [
        [
            f"iSD step over flow-matching step, {size}",
            f"{ratio['isd, difference']:.2f}x",
        ],
        ["the same with the exact JVP", f"{ratio['isd, jvp']:.2f}x"],
        ["loader", f"{loader['samples_per_s'] / 1e6:.1f} M samples/s"],
        [
            "exported Push-T policy, NFE 1, batch 1, p50",
            f"{latency['onnxruntime']['p50_ms']:.2f} ms ({latency['speedup']:.1f}x faster than eager torch)",
        ],
        ["exported against eager, largest difference over the action range", f"{worst:.1e}"],
    ]
    return table(["one CPU core, float32", "measured"], rows)


def demo() -> str:
    """What `make demo` gave."""
    result = load("demo")
    success = result["export"]["success"]
    return (
        f"`make demo` here: {result['seconds']['total'] / 60:.1f} minutes on 2 cores after the installation; "
        f"the exported NFE-1 policy opened the drawer in {success['count']} of {success['n']} unseen episodes "
        f"[{success['interval'][0]:.2f}, {success['interval'][1]:.2f}]."
    )


def render(readme: str) -> str:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->` by the table of that name."""
    for build in (pusht, metaworld, speed, demo):
        name = build.__name__
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
        text = build()
        readme = pattern.sub(lambda match, text=text: f"{match[1]}{text}\n{match[2]}", readme)  # type: ignore[misc]
    return readme


def main() -> int:
    """Rewrite or check README.md."""
    file = ROOT / "README.md"
    old = file.read_text()
    new = render(old)
    if "--check" in sys.argv:
        return int(old != new)
    file.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
