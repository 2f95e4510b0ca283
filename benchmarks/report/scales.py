"""What scale policies change in the images of the embedded models: tables, and the sentence below README's picture."""

from __future__ import annotations

Rows = list[dict[str, str]]
HEADER = ["size", "scale", "captions", "every object present", "and no other", "count error", "objects found"]
MEASURES = ("presence", "correct", "count_error", "found")
ABSENT = "Not yet measured."


def by_policy(rows: Rows) -> dict[tuple[str, str], dict[str, dict[str, str]]]:
    """{(size, policy): {measure: row}}, in the order of the rows."""
    found: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for row in rows:
        found.setdefault((row["size"], row["policy"]), {})[row["measure"]] = row
    return found


def at_size(rows: Rows, size: str) -> dict[str, dict[str, dict[str, str]]]:
    """{policy: {measure: row}} of one size."""
    return {policy: one for (at, policy), one in by_policy(rows).items() if at == size}


def name(row: dict[str, str]) -> str:
    return f"{row['policy']}: {row['setting']}" if row["setting"] else row["policy"]


def change(row: dict[str, str], factor: float = 1.0, digits: int = 2) -> str:
    """Difference to off with its 95 % interval."""
    middle, low, high = (factor * float(row[key]) for key in ("difference", "difference_low", "difference_high"))
    return f"{middle:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def table(rows: Rows) -> list[list[str]]:
    """Cells of means; in other rows than off also of differences."""
    body = []
    for (size, _), one in by_policy(rows).items():
        first = one["presence"]
        cells = []
        for measure in MEASURES:
            mean = f"{float(one[measure]['mean']):.2f}"
            cells.append(f"{mean} ({change(one[measure])})" if one[measure]["difference"] else mean)
        body.append([size, name(first), first["captions"], *cells])
    return body


def sentence(rows: Rows, size: str) -> str:
    """Presence and count error at one size, in words; rows of the policies off, LogN, LogNoRoot and chosen."""
    found = at_size(rows, size)
    if not found:
        return ABSENT
    off = found["off"]
    parts = [
        f"with {name(one['presence']).removeprefix('chosen: ')} in {_percent(one['presence'])} "
        f"({change(one['presence'], 100, 0)} points)"
        for policy, one in found.items() if policy != "off"
    ]  # fmt: skip
    errors = ", ".join(f"{float(one['count_error']['mean']):.2f}" for one in found.values())
    return (
        f"At {size.replace('x', ' x ')} pixels, on {off['presence']['captions']} captions, every requested object is "
        f"in the image in {_percent(off['presence'])} of cases with the default scale, {', '.join(parts[:-1])} and "
        f"{parts[-1]}. The error of the number of objects is {errors} in the same order."
    )


DRIFT_HEADER = ["size", "scale", "drift of the entropy, nats", "smallest and largest of the layers", "undone"]


def drifts(rows: Rows) -> list[list[str]]:
    """Cells of how far the entropy is from that of the training size."""
    return [
        [row["size"], row["policy"], f"{float(row['drift']):.2f}",
         f"{float(row['low']):.2f} to {float(row['high']):.2f}", f"{float(row['undone']):.0%}".replace("%", " %")]
        for row in rows
    ]  # fmt: skip


NEGATIVE_HEADER = ["negative text", "settings", "images", "has the color", "clean", "objects", "unknown objects"]
NEGATIVE_MEASURES = ("has the color", "clean", "objects", "unknown objects")


def by_arm(rows: Rows) -> dict[str, dict[str, dict[str, str]]]:
    """{arm: {measure: row}}, in the order of the rows."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for row in rows:
        found.setdefault(row["arm"], {})[row["measure"]] = row
    return found


def negatives(rows: Rows) -> list[list[str]]:
    """Cells of benchmarks/shapes/negative.py: means, and in other rows than off also differences."""
    body = []
    for arm, one in by_arm(rows).items():
        cells = []
        for measure in NEGATIVE_MEASURES:
            mean = f"{float(one[measure]['mean']):.2f}"
            cells.append(f"{mean} ({change(one[measure])})" if one[measure]["difference"] else mean)
        first = one[NEGATIVE_MEASURES[0]]
        body.append([arm, first["setting"], first["images"], *cells])
    return body


def differences(
    rows: Rows, model: str, sizes: tuple[str, ...], policies: tuple[str, ...] | None = None
) -> list[list[str]]:
    """Lines of docs/science.md without their claim and page: one for each size, of these policies or of all but off."""
    lines = []
    for size in sizes:
        found = {
            policy: one
            for policy, one in at_size(rows, size).items()
            if policy != "off" and (policies is None or policy in policies)
        }
        presence = "; ".join(f"{name(one['presence'])} {change(one['presence'], 100, 0)}" for one in found.values())
        error = "; ".join(f"{name(one['count_error'])} {change(one['count_error'])}" for one in found.values())
        number = f"every object present, percentage points: {presence}. Count error: {error}"
        lines.append([f"{model}, {size}", number])
    return lines


def _percent(row: dict[str, str]) -> str:
    return f"{float(row['mean']):.0%}".replace("%", " %")
