"""Write the tables of README.md and docs/*.md from docs/results/*.json, so that no number is typed by hand.

python docs/tables.py            rewrite the files between the markers
python docs/tables.py --check    exit with 1, naming the files, if one is not what the results say
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
_NO_BREAK = "\N{NO-BREAK SPACE}"
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def load(name: str) -> dict[str, Any]:
    """Read one results file."""
    data: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return data


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, whose numbers are not broken from their units and intervals."""

    def whole(cell: str) -> str:
        cell = re.sub(r"\[[^\]]*\]", lambda match: match[0].replace(" ", _NO_BREAK), cell)
        return re.sub(r"(?<=\d) (?=[±%])|(?<=±) ", _NO_BREAK, cell)

    lines = [head, ["---"] * len(head), *([whole(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def pivot(rows: list[dict[str, Any]], cell: Callable[[dict[str, Any]], str]) -> str:
    """One line an objective, one column an NFE, in the order of the results."""
    nfes = sorted({row["nfe"] for row in rows})
    body = []
    for name in dict.fromkeys(row["objective"] for row in rows):
        own = {row["nfe"]: row for row in rows if row["objective"] == name}
        minutes = [m for row in own.values() for m in row["train_minutes"]]
        cells = [cell(own[nfe]) if nfe in own else "" for nfe in nfes]
        body.append([name, *cells, f"{sum(minutes) / len(minutes):.1f}"])
    return table(["objective", *(f"NFE {nfe}" for nfe in nfes), "train, CPU min"], body)


def pusht_cell(row: dict[str, Any]) -> str:
    """Mean score, its spread over training seeds, and the success rate."""
    spread = "" if row["seed_sd"] is None else f" ± {row['seed_sd']:.3f}"
    return f"{row['score']:.3f}{spread} ({100 * row['success']['rate']:.0f} %)"


def pusht() -> str:
    """Push-T: every objective and NFE on equal terms."""
    result = load("pusht_keypoints")
    return (
        f"{pivot(result['table'], pusht_cell)}\n\nMean max reward ± sd over training seeds (success rate); "
        f"{_setup(result)}\n\n{_paired(result)}"
    )


def pusht_others() -> str:
    """Push-T: further objectives, measured on their own."""
    result = load("pusht_keypoints_others")
    return f"{pivot(result['table'], pusht_cell)}\n\n{_setup(result)}"


def metaworld50() -> str:
    """MetaWorld's fifty tasks by difficulty, and each by itself."""
    result = load("metaworld50")
    conditions, tasks = result["conditions"], result["tasks"]

    def counts(row: dict[str, Any]) -> str:
        return "{count}/{n}".format(**row["success"])

    groups = []
    for row in result["groups"]:
        seeds = " ".join(f"{seed:.3f}" for seed in row["per_seed"])
        groups.append([row["group"], str(row["tasks"]), f"{row['mean']:.3f}", counts(row), seeds])
    single = [
        f"{name.removeprefix('metaworld/').removesuffix('-v3')} {counts(entry['table'][0])} "
        f"({entry['expert']['count']}/{entry['expert']['n']})"
        for name, entry in sorted(tasks.items(), key=lambda item: item[1]["table"][0]["score"])
    ]
    groups[-1][0] = "together"
    head = ["difficulty", "tasks", "mean success", "episodes", "each training seed"]
    return (
        f"{table(head, groups)}\n\nTask by task, the weakest first, and in brackets the scripted "
        f"expert on the same seeds: {', '.join(single)}.\n\n"
        f"{conditions['demonstrations']} scripted demonstrations a task (`{conditions['collect']}`), "
        f"`{conditions['train']}`, {conditions['n_action_steps']} executed actions a chunk, "
        f"training seeds: {len(conditions['seeds'])}, "
        f"episodes for each: {conditions['episodes']}, NFE 1. Made by\n\n{_command(result)}"
    )


def metaworld50_causes() -> str:
    """What changes the success on three weak tasks of MetaWorld: demonstrations, training, executed actions."""
    cases = load("metaworld50_causes")["cases"]
    executed = sorted({int(steps) for case in cases for steps in case["executed"]})
    rows = []
    for case in cases:
        cells = (case["executed"].get(str(steps)) for steps in executed)
        options = (f"`{case[what]}`" for what in ("collect", "train"))
        rows.append(
            [case["task"], *options, *("{count}/{n}".format(**cell) if cell else "" for cell in cells)]
        )
    head = ["task", "collect", "train", *(f"{steps} executed" for steps in executed)]
    commands = "\n".join(cases[0]["commands"])
    return (
        f"{table(head, rows)}\n\nOne training seed each, NFE 1: ten episodes more or less say little. A row is made "
        f"like the first:\n\n```\n{commands}\n```"
    )


def one_step() -> str:
    """One step, in torch and exported, beside the hundred of DDPM: score and time from one run."""
    result = load("one_step_pusht_keypoints")
    times = {name: entry["p50_ms"] for name, entry in result["latency"]["times"].items()}
    slowest = max(times.values())
    rows = []
    for row in result["table"]:
        ms = times[f"{row['objective']}, NFE {row['nfe']}"]
        success = "{count}/{n}".format(**row["success"])
        interval = "[{:.3f}, {:.3f}]".format(*row["interval"])
        cells = [row["objective"], str(row["nfe"]), f"{row['score']:.3f} {interval}", success]
        rows.append([*cells, f"{_ms(ms)}", f"{slowest / ms:.0f}x"])
    head = ["policy", "NFE", "score [95 %]", "success", "a chunk, ms", "fits into the slowest"]
    return (
        f"{table(head, rows)}\n\nTimes: p50 at batch 1, one thread of an {result['latency']['processor']}; without a "
        f"format in eager torch. {_setup(result)}"
    )


def _setup(result: dict[str, Any]) -> str:
    """Steps, seeds and episodes of a benchmark, and its command."""
    rows = result["table"]

    def span(values: list[int]) -> str:
        low, high = min(values), max(values)
        return f"{low:,}" if low == high else f"{low:,} to {high:,}"

    steps = span([n for row in rows for n in row["train_steps"]])
    seeds = span([row["training_seeds"] for row in rows])
    episodes = span([row["episodes_per_seed"] for row in rows])
    return (
        f"{steps} gradient steps, training seeds: {seeds}, episodes for each: {episodes}. Made by\n\n"
        f"{_command(result)}"
    )


def _command(result: dict[str, Any]) -> str:
    """The command of a result as a block, broken between its words."""
    lines = [""]
    for word in re.findall(r"(?:'[^']*'|\S)+", result["command"]):
        if lines[-1] and len(lines[-1]) + len(word) > 86:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return "```\n" + "\n".join(lines) + "\n```"


def _paired(result: dict[str, Any]) -> str:
    """Differences of iSD at NFE 1 from the other rows, paired by evaluation seed, each with a verdict."""
    parts = []
    for d in result["paired_differences"]:
        (name, nfe), (low, high) = d["b"], d["interval"]
        if name == d["a"][0] or d["a"] != ["isd", 1]:
            continue
        verdict = "above" if low > 0 else "below" if high < 0 else "level"
        parts.append([f"{name}, NFE {nfe}", f"{d['mean']:+.3f}", f"[{low:+.3f}, {high:+.3f}]", verdict])
    head = ["iSD at NFE 1 minus", "difference", "95 % bootstrap", "iSD is"]
    return f"Paired by evaluation seed:\n\n{table(head, parts)}"


def mirror() -> str:
    """What the mirrored episodes bring on Push-T."""

    def scores(name: str) -> dict[tuple[str, int], float]:
        return {(row["objective"], row["nfe"]): row["score"] for row in load(name)["table"]}

    plain, mirrored = scores("pusht_keypoints_unmirrored"), scores("pusht_keypoints")
    parts = [
        f"{objective} at NFE {nfe} {score:.3f} (with them {mirrored[objective, nfe]:.3f})"
        for (objective, nfe), score in plain.items()
    ]
    seeds = load("pusht_keypoints_unmirrored")["table"][0]["training_seeds"]
    return f"Without the mirrored episodes, {seeds} training seeds: {'; '.join(parts)}."


def probe() -> str:
    """The multimodal probe: success, and how much of the expert's route entropy is kept."""
    result = load("probe_slalom")

    def cell(row: dict[str, Any]) -> str:
        share = "-" if row["entropy_share"] is None else f"{row['entropy_share']:.2f}"
        return f"{row['success']['count']}/{row['success']['n']}, {share}"

    return (
        f"{pivot(result['table'], cell)}\n\nSuccesses, share of the expert's route entropy; {_setup(result)}"
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
    """Training steps, loader and deployed latency."""
    steps, export = load("speed_unet1d"), load("export_pusht_keypoints")
    ratio, loader, latency = steps["ratio_to_flow_matching"], steps["loader"], export["latency"]
    size = f"U-Net {steps['parameters'] / 1e6:.1f} M, batch {steps['config']['batch_size']}"
    worst = max(case["max_relative"] for case in export["parity"]["cases"])
    rows = [
        [f"step of {name} over one of flow_matching, {size}", f"{value:.2f}x"]
        for name, value in ratio.items()
    ]
    rows = [row for row, name in zip(rows, ratio, strict=True) if name != "flow_matching"]
    rows += [
        ["loader", f"{loader['samples_per_s'] / 1e6:.1f} M samples/s"],
        [
            "exported Push-T policy, NFE 1, batch 1, p50",
            f"{latency['onnxruntime']['p50_ms']:.2f} ms ({latency['speedup']:.1f}x faster than eager torch)",
        ],
        ["exported against eager, largest difference over the action range", f"{worst:.1e}"],
    ]
    return table(["one CPU core, float32", "measured"], rows)


_VARIANTS = {
    "onnx, as trained": "`onnx`, `convolutions=true`",
    "onnx": "`onnx`",
    "onnx-int8": "`onnx-int8`",
    "openvino": "`openvino`",
    "openvino-bf16": "`openvino-bf16`",
    "eager": "eager torch",
    "ddpm100 onnx": "DDPM-100, `onnx`",
    "ddpm100 eager": "DDPM-100, eager torch",
}


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _difference(paired: dict[str, Any] | None) -> str:
    """A paired difference with its interval."""
    if paired is None:
        return ""
    return f"{paired['mean']:+.3f} [{paired['interval'][0]:+.3f}, {paired['interval'][1]:+.3f}]"


def formats() -> str:
    """The formats of an export: errors, times, paired scores."""
    result = load("export_formats")
    rows = []
    for policy in result["policies"].values():
        size = f"{policy['network']['backbone']['name']}, {policy['network']['parameters'] / 1e6:.1f} M"
        for name, times in policy["latency"].items():
            parity = policy["parity"].get(name)
            errors = ", ".join(f"{x:.2g}" for x in parity["max_abs_per_dimension"]) if parity else ""
            scored = policy.get("simulation", {}).get(name, {})
            paired = [_difference(scored.get(f"{metric}_difference")) for metric in ("score", "success")]
            ratio = f"{policy['over_onnx_as_trained'][name]:.2f}x"
            row = [size, _VARIANTS[name], _ms(times["p50_ms"]), ratio, _ms(times["cold_ms"]), errors]
            rows.append([*row, *paired])
    head = ["Push-T policy", "format", "p50, ms", "over f32 as trained", "after others, ms"]
    head += ["largest error of each dimension, px", "score minus eager's", "success rate minus eager's"]
    episodes = len(next(iter(result["policies"].values()))["simulation"]["seeds"])
    note = f"NFE 1, batch 1, one thread; {episodes} paired episodes [95 % bootstrap]. Made by"
    return f"{table(head, rows)}\n\n{note}\n\n```\n{result['command']}\n```"


def formats_again() -> str:
    """The U-Net's reduced precision on more episodes."""
    result = load("export_formats_unet")
    (policy,) = result["policies"].values()
    scored = policy["simulation"]
    parts = [
        f"`{name}`: score {_difference(scored[name]['score_difference'])}, "
        f"success rate {_difference(scored[name]['success_difference'])}"
        for name in ("onnx-int8", "openvino-bf16")
    ]
    return (
        f"{len(scored['seeds'])} episodes from seed {scored['seeds'][0]}, minus eager's: {'; '.join(parts)}."
    )


def latency() -> str:
    """One step beside a hundred."""
    result = load("latency")
    networks = result["networks"].values()
    head = ["", *(f"{x['backbone']['name']}, {x['parameters'] / 1e6:.1f} M" for x in networks)]
    rows = []
    for name, title in _VARIANTS.items():
        row = [title]
        for network in networks:
            times = _ms(network["latency"][name]["p50_ms"])
            row.append(f"{times} ({network['faster_than_ddpm100_eager'][name]:.0f}x)")
        rows.append(row)
    note = (
        f"p50 in ms on an {result['processor']}, batch 1, one thread (how often it fits into eager DDPM-100); "
        "untrained weights. Made by"
    )
    return f"{table(head, rows)}\n\n{note}\n\n```\n{result['command']}\n```"


def demo() -> str:
    """What `make demo` gave."""
    result = load("demo")
    success = result["export"]["success"]
    return (
        f"`make demo` here: {result['seconds']['total'] / 60:.1f} minutes on 2 cores after the installation; "
        f"the exported NFE-1 policy opened the drawer in {success['count']} of {success['n']} unseen episodes "
        f"[{success['interval'][0]:.2f}, {success['interval'][1]:.2f}]."
    )


def convert() -> str:
    """Speed and memory of the conversion."""
    result = load("convert_speed")
    rates, peak = result["mb_per_cpu_s"], result["peak_mb"]
    return (
        f"`flowleap convert`: {rates['flowleap convert']:.0f} MB of low-dim HDF5 a CPU second, compressed, checked and "
        f"with checksums (a plain loop of h5py and zarr: {rates['h5py + zarr loop']:.0f}); peak memory "
        f"{peak['whole file']:.0f} MB for a file of {result['megabytes'] / 1e3:.1f} GB, "
        f"{peak['a tenth of it']:.0f} MB for a tenth of it."
    )


def serving() -> str:
    """The server with openpi's own client: scores, cost, many clients."""
    result = load("serve")
    scores, cpu, many, rude = result["scores"], result["cpu"], result["load"], result["hostile"]
    rows = [["in this process", f"{scores['in_process']['mean']:.3f}", ""]]
    for history in ("client", "server", "repeat"):
        own = scores[history]
        rows.append(
            [
                f"`history={history}`",
                f"{own['mean']:.3f}",
                f"{own['identical_episodes']} of {own['episodes']}",
            ]
        )
    head = [
        f"{scores['task']}, {scores['in_process']['episodes']} paired episodes",
        "mean best reward",
        "identical",
    ]
    minutes = many["seconds"] / 60
    long = f"{minutes:.0f} minutes" if minutes >= 1 else f"{many['seconds']:g} s"
    trip, slowest = many["round_trip_ms"], rude["round_trip_ms"]["p100"]
    paragraphs = [
        table(head, rows),
        f"Asked by the unmodified client of openpi-client {result['client']['openpi-client']}, in an "
        "environment of its own.",
        f"CPU time that the server adds to a request of this policy: {cpu['added_ms']:.2f} ms (the policy: "
        f"{cpu['policy_ms']:.2f} ms).",
        f"{many['clients']} clients at {many['hz']:g} Hz for {long}: {many['requests']:,} requests, {many['errors']} "
        f"errors, round trip p50 {trip['p50']:.1f} ms, p99 {trip['p99']:.1f} ms, memory grew by "
        f"{many['rss_growth_mb']:.1f} MB.",
        f"Two robots beside a client that sent {rude['frames']} hostile frames: {rude['requests']:,} requests, "
        f"{rude['errors']} errors, the slowest round trip {slowest:.0f} ms.",
        f"Made by\n\n{_command(result)}",
    ]
    return "\n\n".join(paragraphs)


def lift() -> str:
    """Lift of robosuite, from a robomimic file."""
    row = load("robosuite_lift")["table"][0]
    success, minutes = row["success"], row["train_minutes"][0]
    return (
        "robosuite Lift, state, 200 scripted demonstrations in a robomimic HDF5 file, trained on in place for "
        f"{minutes:.1f} minutes of one core: {success['count']} of {success['n']} unseen episodes at NFE {row['nfe']} "
        f"[{success['interval'][0]:.2f}, {success['interval'][1]:.2f}]."
    )


def images() -> str:
    """Push-T from the human images, and MetaWorld from a camera."""
    result, drawer = load("pusht_pixels"), load("image_drawer-open-v3")

    def cell(row: dict[str, Any]) -> str:
        low, high = row["interval"]
        success = row["success"]
        return f"{row['score']:.3f} [{low:.2f}, {high:.2f}] ({success['count']}/{success['n']})"

    row = drawer["table"][0]
    success, minutes = row["success"], row["train_minutes"][0]
    low, high = success["interval"]
    return (
        pivot(result["table"], cell)
        + f"\n\nMean max reward [95 % bootstrap over evaluation seeds] (successes); {_setup(result)}"
        + f"\n\n{_paired(result)}\n\n{drawer['config']['task']['name']} from one camera, "
        + f"50 scripted demonstrations, {minutes:.0f} CPU minutes: {success['count']}/{success['n']} "
        + f"at NFE {row['nfe']} [{low:.2f}, {high:.2f}]."
    )


def image_cost() -> str:
    """What training and acting from images take."""
    measured = load("image_speed")["measured"]
    names = {
        "in memory, uint8": "frames in memory as uint8 (the default where they fit)",
        "from the disk": "frames read from the disk",
        "DataLoader, float32 in memory": "torch DataLoader over float32 frames",
    }
    body = [
        [
            text,
            f"{100 * measured[name]['network_share']:.0f} %" if "network_share" in measured[name] else "",
            f"{measured[name]['loader_windows_per_cpu_s']:,.0f}",
            f"{measured[name]['peak_mb'] / 1e3:.1f} GB",
        ]
        for name, text in names.items()
    ]
    head = ["Push-T, 25,650 frames", "forward + backward", "loader alone, windows a CPU s", "peak memory"]
    latencies = []
    for name, what in (
        ("export_pusht_pixels", "CNN + MLP"),
        ("export_pusht_pixels_unet", "CNN + U-Net 5.7 M"),
    ):
        report = load(name)
        worst = max(case["max_relative"] for case in report["parity"]["cases"])
        p50 = report["latency"]["onnxruntime"]["p50_ms"]
        latencies.append(f"{what} {p50:.2f} ms, parity {worst:.0e} of the action range")
    return (
        table(head, body) + f"\n\nExported, uint8 images in, p50 a chunk on one core: {'; '.join(latencies)}."
    )


def door() -> str:
    """The Adroit door from 25 human demonstrations."""
    result = load("adroit_door")
    rows = []
    for row in result["table"]:
        parts = [row["success"], *row["outcomes"].values()]
        cells = [f"{p['count']}/{p['n']} [{p['interval'][0]:.2f}, {p['interval'][1]:.2f}]" for p in parts]
        minutes = sum(row["train_minutes"]) / len(row["train_minutes"])
        rows.append([row["objective"], str(row["nfe"]), *cells, f"{minutes:.1f}"])
    head = ["objective", "NFE", "hinge > 1.35 rad (success)", "hinge > 1.0 rad", "train, CPU min"]
    recorded = load("replay_adroit_door")["summary"]
    passed, opened = recorded["success"]["recorded"], recorded["hinge_above_1_rad"]["recorded"]
    return (
        f"Of the {passed['n']} demonstrations themselves {passed['count']} pass 1.35 rad, "
        f"{opened['count']} pass 1.0.\n\n"
        f"{table(head, rows)}\n\nSuccesses [95 % Wilson]; {_setup(result)}\n\n{_paired(result)}"
    )


def replay() -> str:
    """What the replays of the human demonstrations gave."""
    push, door = load("replay_pusht")["summary"], load("replay_adroit_door")["summary"]
    coverage, returns = push["coverage"]["replayed"]["mean"], door["sum_reward"]
    return (
        f"Push-T, human: {push['reached']['count']} of {push['reached']['n']} episodes, mean coverage {coverage:.3f}. "
        f"Adroit door, human: {door['reached']['count']} of {door['reached']['n']}, return "
        f"{returns['replayed']['mean']:.1f} (recorded: {returns['recorded']['mean']:.1f})."
    )


def results() -> str:
    """The README's table: every task, iSD beside its neighbours."""

    def score(row: dict[str, Any], metric: str) -> str:
        if row.get("entropy_share") is not None:
            return f"{100 * row['success']['rate']:.0f} %, {row['entropy_share']:.2f}"
        if metric == "success":
            return f"{100 * row['success']['rate']:.0f} %"
        return f"{row['score']:.3f}"

    tasks = [
        ("pusht_keypoints", "Push-T, keypoints, human", "max_reward"),
        ("pusht_pixels", "Push-T, images, human", "max_reward"),
        ("adroit_door", "Adroit door, 25 human", "success"),
        ("probe_slalom", "slalom, eight routes", "success"),
        *((file.stem, "", "success") for file in sorted(RESULTS.glob("metaworld_*.json"))),
        ("image_drawer-open-v3", "", "success"),
        ("robosuite_lift", "robosuite Lift", "success"),
    ]
    columns = [("isd", 1), ("flow_matching", 1), ("flow_matching", 10), ("regression", 1)]
    body = []
    for name, title, metric in tasks:
        result = load(name)
        found = {(row["objective"], row["nfe"]): row for row in result["table"]}
        short = result["config"]["task"]["name"].replace("metaworld/", "MetaWorld ").removesuffix("-v3")
        title = title or short + (", images" if name.startswith("image_") else "")
        minutes = found["isd", 1]["train_minutes"]
        cells = [score(found[column], metric) if column in found else "" for column in columns]
        body.append([title, *cells, f"{sum(minutes) / len(minutes):.1f}"])
    head = ["task, demonstrations", "iSD, NFE 1", "flow matching, NFE 1", "flow matching, NFE 10"]
    return table([*head, "regression, NFE 1", "iSD training, CPU min"], body)


def lerobot() -> str:
    """Exports in LeRobot: the same actions, and on time."""
    result = load("lerobot")
    same = result["eval"]
    body = []
    for run in result["rollout"]:
        threshold = run.get("queue_threshold")
        body.append(
            [
                run["inference"] + ("" if threshold is None else f", queue_threshold={threshold}"),
                f"{run['served']} of {run['ticks']} ({100 * run['share']:.1f} %)",
                f"{run['rate_hz']:.1f} Hz",
                f"{run['answer_ms']['p50']:.1f} / {run['answer_ms']['p99']:.1f} ms",
                f"{100 * run['cpu_share']:.0f} %",
                f"{run['mean_second_difference']:.1f}",
            ]
        )
    head = [
        "inference",
        "ticks served",
        "rate",
        "observed to commanded, p50 / p99",
        "of a core",
        "2nd difference",
    ]
    run = result["rollout"][0]
    return (
        f"lerobot-eval and `flowleap eval`, Push-T, {same['episodes']} episodes, the same seeds: the largest "
        f"difference of {same['actions']} actions is {same['max_abs_difference']:.0e} px.\n\n{table(head, body)}\n\n"
        f"lerobot {result['lerobot']}, {run['seconds']} s at {run['fps']} Hz; a tick is served if its action comes "
        "within its period."
    )


def realtime() -> str:
    """Late chunks: score, success and jump of every way of going on, by delay."""
    result = load("realtime")
    parts = []
    for task, part in result["tasks"].items():
        rows = {(row["way"], row["delay"]): row for row in part["table"]}
        ways, delays = (list(dict.fromkeys(key[i] for key in rows)) for i in (0, 1))
        shares = any(row["entropy_share"] is not None for row in rows.values())
        body = []
        for way in ways:
            last = rows[way, delays[-1]]
            cells = [way, *(late_cell(rows[way, delay]) for delay in delays), f"{last['jump']['mean']:.3g}"]
            body.append([*cells, f"{last['entropy_share']:.2f}"] if shares else cells)
        head = [task, *(f"delay {delay}" for delay in delays), f"jump at {delays[-1]}"]
        config = part["config"]
        about = (
            f"{len(config['seeds'])} training seeds of {config['steps']:,} steps together, NFE 1, a new chunk every "
            f"{config['execute']} steps"
        )
        figure = f"results/realtime_{re.sub('[/:]', '-', task)}.png"
        parts.append(
            f"{table([*head, 'entropy share'] if shares else head, body)}\n\n{about}. Made by\n\n{_command(part)}\n\n"
            f"![{task}: score, success rate and jump against the delay]({figure})"
        )
    return "\n\n".join(parts)


def late_cell(row: dict[str, Any]) -> str:
    """Mean score with its interval and how many succeeded; only the latter where the score is the success."""
    success = f"{row['success']['count']}/{row['success']['n']}"
    if row["score"]["mean"] == row["success"]["rate"]:
        low, high = row["success"]["interval"]
        return f"{success} [{low:.2f}, {high:.2f}]"
    low, high = row["score"]["interval"]
    return f"{row['score']['mean']:.3f} [{low:.3f}, {high:.3f}], {success}"


def evaluator() -> str:
    """Steps a second through the evaluator beside plain loops around the simulators."""
    result = load("evaluator_speed")
    config, body = result["config"], []
    for task, own in result["measured"].items():
        rates = (own[f"{name}_steps_per_s"] for name in ("serial", "processes", "evaluator"))
        shares = (f"{100 * own[f'share_of_{name}']:.0f} %" for name in ("serial", "processes"))
        body.append([task, *(f"{rate:,.0f}" for rate in rates), *shares, f"{own['driver_ms_per_chunk']:.2f}"])
    n = result["cores"]
    head = [
        "task",
        "one loop, steps/s",
        f"{n} loops at once",
        f"`n_envs={result['workers']}`",
        f"of {n} x one loop",
    ]
    return (
        f"{table([*head, f'of {n} loops', 'evaluator, CPU ms a chunk'], body)}\n\n{config['episodes']} episodes of a "
        f"policy that does nothing, medians of {config['repeats']} rounds; with resets, without the start "
        f"and the end of workers. Made by\n\n{_command(result)}"
    )


def gradients() -> str:
    """Gradient norms and scores of iSD and ESD, condition by condition."""
    return gradient_table(load("gradient_norms"))


def gradient_table(result: dict[str, Any]) -> str:
    """The same of any `flowleap gradients`."""
    cases = result["cases"]
    conditions = dict.fromkeys(name.partition("-")[2] for name in cases)

    def cell(name: str) -> str:
        case = cases.get(name)
        if case is None:
            return ""
        reached = case["ended"] if case["score"] is None else f"{case['score']:.2f}"
        return f"{case['median']:.1f}, {case['largest']:.1f} ({reached})"

    def key(objective: str, condition: str) -> str:
        return f"{objective}-{condition}" if condition else objective

    rows = []
    for condition in conditions:
        case = cases.get(key("isd", condition)) or cases[key("esd", condition)]
        options = " ".join(f"`{word}`" for word in case["overrides"].split()[1:])
        rows.append([options or "as it is", cell(key("isd", condition)), cell(key("esd", condition))])
    pairs = [
        (key("isd", c), key("esd", c))
        for c in conditions
        if key("isd", c) in cases and key("esd", c) in cases
    ]
    ratios = [cases[b]["median"] / cases[a]["median"] for a, b in pairs]
    return (
        f"{table(['options', 'iSD', 'ESD'], rows)}\n\nMedian and largest gradient norm before clipping (score over "
        f"{result['config']['episodes']} episodes at NFE 1). Median norm of ESD over that of iSD, over all pairs: "
        f"{min(ratios):.1f} to {max(ratios):.1f}. Made by\n\n{_command(result)}"
    )


def calibration() -> str:
    """What the tests and intervals of `flowleap compare` promise, and what they hold in simulation."""
    result = load("compare_calibration")

    def most(rows: list[dict[str, Any]], **wanted: str) -> str:
        own = [row["rate"] for row in rows if all(row[k] == v for k, v in wanted.items())]
        return f"{100 * max(own):.1f} % ({len(own)} cases)"

    alarms, scores = result["false_alarms"], result["false_alarms_scores"]
    rows = [
        ["sequential, success", *(most(alarms, alternative=a) for a in ("greater", "two-sided"))],
        ["sequential, scores", *(most(scores, alternative=a) for a in ("greater", "two-sided"))],
        *([test, "", most(result["type_one"], test=test)] for test in ("exact McNemar", "Boschloo")),
    ]
    first = table(["false alarms at most, alpha 5 %", "greater", "two-sided"], rows)
    cases: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in result["decisions"]:
        if row["prior"] == result["prior"]:
            key = (row["first"], row["second"], row["correlation"])
            cases.setdefault(key, {})[row["alternative"]] = row
    rows = [
        [
            f"{p:.2f} and {q:.2f}",
            f"{c:.1f}",
            *(f"{own[a]['mean']:.0f} ({100 * own[a]['decided']:.0f} %)" for a in own),
        ]
        for (p, q, c), own in cases.items()
    ]
    head = ["success rates", "correlation", "episodes, greater (decided)", "two-sided"]
    second = table(head, rows)
    spans: dict[str, list[float]] = {}
    for row in result["coverage"]:
        runs = f", {row['training_runs']} training runs" if "training_runs" in row else ""
        spans.setdefault(f"{row['interval']}{runs}", []).append(100 * row["coverage"])
    rows = [[name, f"{min(own):.1f} to {max(own):.1f} %"] for name, own in spans.items()]
    third = table(["95 % interval", "covers"], rows)
    simulations = result["config"]["simulations"]
    return (
        f"{first}\n\nThe sequential tests were looked at after each of {result['looks']} episodes (scores: "
        f"{result['score_looks']}), {simulations:,} times a case.\n\n{second}\n\nMean episodes until the decision, "
        f"{result['looks']} where there is none.\n\n{third}\n\nOver several rates and numbers of episodes. Made by\n\n"
        f"{_command(result)}"
    )


def render(readme: str) -> str:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->` by the table of that name."""
    from claims import ALL

    for build in (
        calibration,
        pusht,
        pusht_others,
        mirror,
        probe,
        metaworld,
        lift,
        images,
        image_cost,
        door,
        speed,
        formats,
        formats_again,
        latency,
        demo,
        convert,
        serving,
        replay,
        results,
        lerobot,
        realtime,
        evaluator,
        gradients,
        *ALL,
        metaworld50,
        metaworld50_causes,
        one_step,
    ):
        name = build.__name__
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
        text = build()
        text += "\n" if text else ""
        readme = pattern.sub(lambda match, text=text: f"{match[1]}{text}{match[2]}", readme)  # type: ignore[misc]
    return readme


def main() -> int:
    """Rewrite or check the files."""
    stale = []
    for file in FILES:
        old = file.read_text()
        new = render(old)
        if old != new:
            stale.append(file.relative_to(ROOT).as_posix())
            if "--check" not in sys.argv:
                file.write_text(new)
    if stale:
        print("out of step with docs/results:" if "--check" in sys.argv else "written:", *stale)
    return int("--check" in sys.argv and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
