"""The tables of docs/stability.md: one for each claim, empty as long as nothing is measured. Called by tables.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tables import RESULTS, _command, _paired, _setup, gradient_table, load, pivot, pusht_cell, table

Results = dict[str, Any]


def _each(pattern: str, show: Callable[[str, Results], str]) -> str:
    """What `show` makes of each results file that is there, one after the other."""
    return "\n\n".join(show(file.stem, load(file.stem)) for file in sorted(RESULTS.glob(f"{pattern}.json")))


def _span(values: Iterable[float]) -> str:
    low, high = min(values := list(values)), max(values)
    return f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"


def _row(row: dict[str, Any]) -> list[str]:
    """Objective, NFE, mean and spread over training seeds, each seed, entropy share where there is one."""
    spread = "" if row["seed_sd"] is None else f" ± {row['seed_sd']:.3f}"
    share = row.get("entropy_share")
    return [
        row["objective"],
        str(row["nfe"]),
        f"{row['score']:.3f}{spread}",
        " ".join(f"{score:.2f}" for score in row["per_seed"]),
        "" if share is None else f"{share:.2f}",
    ]


_HEAD = ["objective", "NFE", "score ± sd", "each training seed", "entropy share"]


def _minutes(row: dict[str, Any]) -> str:
    return f"{sum(row['train_minutes']) / len(row['train_minutes']):.1f}"


def _task(result: Results) -> str:
    return f"**{result['config']['task']['name']}**"


def _compared(pattern: str, minutes: str) -> str:
    """Scores and training time of each row, and the first one's differences from the others, by task."""

    def show(name: str, result: Results) -> str:
        rows = [[*_row(row), _minutes(row)] for row in result["table"]]
        note = f"Score: {result['metric']}; {_setup(result)}"
        return f"{_task(result)}\n\n{table([*_HEAD, minutes], rows)}\n\n{note}\n\n{_paired(result)}"

    return _each(pattern, show)


def stability() -> str:
    """Scores and gradient norms of the objectives over training seeds, by task."""

    def show(name: str, result: Results) -> str:
        rows = []
        for row in result["table"]:
            norms = [norm for norm in row["gradient_norms"] if norm]
            spans = [
                _span(n[key] for n in norms) for key in ("median", "largest", "largest_in_the_last_tenth")
            ]
            rows.append([*_row(row), *spans, _minutes(row)])
        head = [*_HEAD, "median gradient norm", "largest", "largest of the last tenth", "train, CPU min"]
        note = f"Score: {result['metric']}; norms before clipping, smallest to largest over the seeds; "
        return f"{_task(result)}\n\n{table(head, rows)}\n\n{note}{_setup(result)}"

    return _each("claims_stability_*", show)


def fixed_points() -> str:
    """What self-distillation ends in with and without its anchor, on a density in two dimensions."""

    def show(name: str, result: Results) -> str:
        rows = []
        ends = {choose(row["nfe"] for row in result["table"]) for choose in (min, max)}
        for row in (row for row in result["table"] if row["nfe"] in ends):
            field = result["fields"][row["case"]]
            residual = field["terms"].get("sd")
            cells = [row["case"].replace("_", " "), str(row["nfe"]), f"{field['velocity_error']:.3f}"]
            cells.append("" if residual is None else f"{residual:.1e}")
            keys = ("from_finest", "moved", "sliced_wasserstein", "on_a_mode", "entropy_share")
            rows.append([*cells, *(f"{row[key]:.3f}" for key in keys)])
        head = ["training", "NFE", "error of the velocity", "self-distillation term", "from the largest NFE"]
        head += ["from the noise", "sliced Wasserstein", "on a mode", "entropy share"]
        return (
            f"{table(head, rows)}\n\nOn fresh data; distances are root mean squares. Made by\n\n{_command(result)}\n\n"
            f"![Samples with and without the anchor](results/{name}.png)"
        )

    return _each("claims_toy", show)


def long_gradients() -> str:
    """Gradient norms of iSD and ESD on longer runs."""

    def show(name: str, result: Results) -> str:
        return f"{gradient_table(result)}\n\n![gradient norms](results/{name}.png)"

    return _each("claims_gradients*", show)


def distillation() -> str:
    """One stage against teacher and student at equal training time."""
    return _compared("distillation*", "train, CPU min, a teacher's included")


def training_length() -> str:
    """Every objective at full length."""

    def show(name: str, result: Results) -> str:
        def cell(row: dict[str, Any]) -> str:
            if row.get("entropy_share") is None:
                return pusht_cell(row)
            return f"{row['success']['count']}/{row['success']['n']}, {row['entropy_share']:.2f}"

        what = (
            "Successes, share of the expert's route entropy" if "slalom" in name else "Score (success rate)"
        )
        return (
            f"{_task(result)}\n\n{pivot(result['table'], cell)}\n\n{what}; {_setup(result)}\n\n"
            f"![Score against NFE and training time](results/{name}.png)"
        )

    return _each("claims_length_*", show)


def levers() -> str:
    """Changes that the literature proposes, one at a time."""
    return _compared("claims_levers_*", "train, CPU min")


ALL = (stability, fixed_points, long_gradients, distillation, training_length, levers)
