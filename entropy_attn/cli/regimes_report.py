"""What `entropy-attn profile` prints of the regimes of the layers."""

from __future__ import annotations

from statistics import median
from typing import Any

from entropy_attn.cli.tables import Column, print_table, say

MAX_ROWS = 24  # of more layers, a row for each regime


def print_regimes(regimes: dict[str, Any], training_size: str | None) -> None:
    """A table of the last size other than the training size, and the verdict of every size."""
    others = [size for size in regimes if size != training_size]
    shown = (others or list(regimes))[-1]
    layers = regimes[shown]["layers"]
    columns = [
        Column("layer", fold=True),
        Column("T", rank=3, right=True),
        Column("N", rank=3, right=True),
        Column("sd", rank=1, right=True),
        Column("sd / √(2 ln T)", right=True),
        Column("regime"),
        Column("responsive heads", rank=4, right=True),
        Column("drift", right=True),
        Column("LogN undoes", right=True),
        Column("measured", rank=2, right=True),
        Column("holds at", right=True),
    ]
    if len(layers) <= MAX_ROWS:
        from entropy_attn.plots.layers import labels_of  # matplotlib is not imported for --help

        names = labels_of([layer["layer"] for layer in layers])
        rows = [_row(layer, name) for layer, name in zip(layers, names, strict=True)]
    else:
        from entropy_attn.profiling.regimes import REGIMES  # torch is not imported for --help

        columns[0] = Column("layers")
        by_regime = [[layer for layer in layers if layer["regime"] == name] for name in REGIMES]
        rows = [_middle(alike) for alike in by_regime if alike]
    title = f"Which layers can a scale move? {shown} px, default scale" + (
        "" if len(layers) <= MAX_ROWS else ", medians"
    )
    print_table(columns, rows, title=title, show_all="a wider terminal, --json and regimes.csv show them")
    say(
        "sd: standard deviation of the logits within a row; drift: entropy minus that at the training size, in nats; "
        "holds at: the factor on the scale that would bring the entropy back, by one Newton step of at most 2"
    )
    for size in others or [shown]:
        say(regimes[size]["verdict"], "bold")


def _row(layer: dict[str, Any], name: str) -> list[Any]:
    return [
        name,
        layer["train_tokens"],
        layer["tokens"],
        _number(layer["logit_std"]),
        _number(layer["std_ratio"]),
        layer["regime"],
        f"{layer['responsive_heads']} of {layer['heads']}",
        _signed(layer["drift"]),
        _percent(layer["logn_predicted"]),
        _percent(layer["logn_measured"]),
        _factor(layer["hold_factor"], layer["hold"]),
    ]


def _middle(layers: list[dict[str, Any]]) -> list[Any]:
    """The medians of the layers of one regime."""
    numbers = ("logit_std", "std_ratio", "drift", "logn_predicted", "logn_measured")
    found: dict[str, Any] = {"train_tokens": None, "tokens": None, "hold_factor": None, "hold": "unknown"}
    found |= {name: sum(layer[name] for layer in layers) for name in ("heads", "responsive_heads")}
    for name in numbers:
        known = [layer[name] for layer in layers if layer[name] is not None]
        found[name] = median(known) if known else None
    return _row({**found, "regime": layers[0]["regime"]}, str(len(layers)))


def _factor(factor: float | None, hold: str) -> str | None:
    if factor is None or hold == "unknown":
        return None
    if hold == "no response":
        return "none"
    sign = "" if hold == "holds" else ("≥ " if factor > 1 else "≤ ")
    return f"{sign}{factor:.2f}"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}"


def _signed(value: float | None) -> str | None:
    return None if value is None else f"{value:+.2f}"


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.0%}"
