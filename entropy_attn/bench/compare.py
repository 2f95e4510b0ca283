"""Comparisons of rows: the best competitor, the cost of a statistic, the time of a denoising step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from entropy_attn.bench.implementations.registry import IMPLEMENTATIONS, TORCHS_CHOICE
from entropy_attn.bench.measure import CASE, Row

AUTO = "auto"


def by_case(rows: Iterable[Row]) -> dict[tuple, list[Row]]:
    """{case: rows}: the rows of each case, in the order in which they were measured."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in CASE), []).append(row)
    return found


def name_of(row: Row) -> str:
    """The name of the implementation, without the task."""
    return str(row["implementation"]).partition("+")[0]


def is_ours(row: Row) -> bool:
    return IMPLEMENTATIONS[name_of(row)].ours


def fastest(rows: Iterable[Row], *, ours: bool | None = None, name: str | None = None) -> Row | None:
    """The fastest row with a time: of all, of ours, of the others, or of one implementation."""
    timed = [
        row
        for row in rows
        if "p50_ms" in row and ours in (None, is_ours(row)) and (name is None or name_of(row) == name)
    ]
    return min(timed, key=lambda row: row["p50_ms"], default=None)


def speeds(rows: list[Row]) -> dict[str, float]:
    """{implementation: speed relative to the best competitor} for the rows of one case."""
    best = fastest(rows, ours=False)
    if best is None:
        return {}
    return {row["implementation"]: best["p50_ms"] / row["p50_ms"] for row in rows if "p50_ms" in row}


def choices(rows: Iterable[Row]) -> list[tuple[Row, Row]]:
    """(`auto`, torch's own choice) for each plain case in which both were measured."""
    pairs = ((fastest(case, name=AUTO), fastest(case, name=TORCHS_CHOICE)) for case in by_case(rows).values())
    return [(auto, torchs) for auto, torchs in pairs if auto and torchs]


def plain_of(case: tuple, task: str = "plain") -> tuple:
    """The same case with another task."""
    return tuple(task if name == "task" else value for name, value in zip(CASE, case, strict=True))


def added(rows: list[Row], task: str) -> list[Row]:
    """Percent of time that a statistic adds to a plain call.

    Ours is `triton`, or else `auto`; the other side compares the best competitor with torch's own plain call.
    """
    cases, found = by_case(rows), []
    for case, of_case in cases.items():
        if of_case[0]["task"] != task:
            continue
        plain = cases.get(plain_of(case), [])
        pairs = {
            "ours": next(
                (
                    (fastest(of_case, name=n), fastest(plain, name=n))
                    for n in ("triton", AUTO)
                    if fastest(of_case, name=n)
                ),
                (None, None),
            ),
            "best other": (fastest(of_case, ours=False), fastest(plain, name=TORCHS_CHOICE)),
        }
        for side, (more, base) in pairs.items():
            if more and base:
                percent = 100.0 * (more["p50_ms"] / base["p50_ms"] - 1.0)
                found.append({**of_case[0], "side": side, "implementation": more["implementation"], "percent": percent})
    return found


def denoising_steps(rows: list[Row]) -> list[Row]:
    """Milliseconds of attention in one denoising step, for each model whose layers were all measured.

    Layers without the task count with their plain call. Our side is `auto`; the other side is torch's own choice, or
    the fastest competitor at each shape if the task is a statistic.
    """
    cases, totals = by_case(rows), dict[tuple, dict[str, Any]]()
    for case, plain in cases.items():
        row = plain[0]
        if row["task"] != "plain" or not row["layers"] or row["model"] == "sweep":
            continue
        key = (row["model"], row["size"], row["pass"], row["dtype"])
        tasks = totals.setdefault(key, {})
        for task in ("plain", "entropy", "map"):
            asked = cases.get(plain_of(case, task))
            there = plain if asked is None else asked
            other: dict[str, Any] = {"name": TORCHS_CHOICE} if asked is None or task == "plain" else {"ours": False}
            for side, one in (("ours", fastest(there, name=AUTO)), ("other", fastest(there, **other))):
                total = tasks.setdefault(task, {}).setdefault(side, {"ms": 0.0, "whole": True, "asked": False})
                total["asked"] |= asked is not None
                total["whole"] &= one is not None
                total["ms"] += row["layers"] * one["p50_ms"] if one else 0.0
    return [
        {"model": model, "size": size, "pass": passes, "dtype": dtype, "task": task, "side": side, "ms": total["ms"]}
        for (model, size, passes, dtype), tasks in totals.items()
        for task, sides in tasks.items()
        for side, total in sides.items()
        if total["whole"] and total["asked"]
    ]
