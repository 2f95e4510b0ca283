"""The tables that `entropy-attn profile` prints."""

from __future__ import annotations

from typing import Any

from entropy_attn.cli.regimes_report import print_regimes
from entropy_attn.cli.tables import Column, print_table, say


def print_report(summary: dict[str, Any]) -> None:
    policies = list(summary["policies"])
    say(
        f"{summary['model']}, {summary['layers_measured']} layers, {summary['steps']} steps; "
        "entropy H in nats, mean over layers"
    )
    columns = [Column("size (px)")]
    for policy in policies:
        columns += [
            Column("H", right=True, group=policy),
            Column("H / ln N", rank=1, right=True, group=policy),
            Column("from training", right=True, group=policy),
            Column("seconds", rank=2, right=True, group=policy),
        ]
    rows = []
    for size in summary["sizes"]:
        row = [size]
        for policy in policies:
            row += [
                _number(summary["mean_entropy"][policy][size]),
                _number(summary["mean_entropy_over_ln_tokens"][policy][size]),
                _number(summary["change_from_training"][policy][size]["mean_distance"]),
                _number(summary["seconds_per_run"][policy][size], 1),
            ]
        rows.append(row)
    print_table(columns, rows, show_all="a wider terminal, --json and summary.json show them")
    say("from training: distance of a layer's entropy from its value at the training size, mean over layers, in nats")
    if any(summary["slope"][policy]["median"] is not None for policy in policies):  # a single size has none
        _print_slopes(summary["slope"])
    if summary["regimes"] is not None:
        print()
        print_regimes(summary["regimes"], summary["training_size"])
    for note in summary["notes"]:
        say(f"note: {note}")


def _print_slopes(slopes: dict[str, dict[str, Any]]) -> None:
    columns = [
        Column("scale", fold=True),
        *(Column(name, right=True) for name in ("median", "quartiles", "range", "layers")),
    ]
    rows = [
        [policy, _number(found["median"]), _range(found, "lower_quartile", "upper_quartile"),
         _range(found, "min", "max"), found["layers"]]
        for policy, found in slopes.items()
    ]  # fmt: skip
    print()
    print_table(columns, rows, title="Slope of each layer's entropy against ln N (0: equally sharp at every size)")


def _range(found: dict[str, Any], low: str, high: str) -> str:
    return "-" if found[low] is None else f"{found[low]:.3f} to {found[high]:.3f}"


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
