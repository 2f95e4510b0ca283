"""The tables of docs/guidance-measured.md, from the files of benchmarks/guidance."""

from __future__ import annotations

Rows = list[dict[str, str]]
Table = tuple[str, list[str], list[list[str]]]  # caption, header, cells

GUIDANCES = {
    "none": "no guidance",
    "tsam-released": "T-SAM",
    "tsam-paper": "T-SAM, the paper's form",
    "attend-and-excite": "Attend-and-Excite",
    "conform": "CONFORM",
    "syngen": "SynGen",
    "tsam-shuffled": "T-SAM, shuffled T",
    "tsam-oracle": "T-SAM, syntax-oracle T",
}
METRICS = {"presence": "every object present", "binding": "binding", "count": "exact count", "relation": "relation"}


def marks(rows: Rows, split: str) -> Table:
    """The means of each arm, and the differences to no guidance with their intervals."""
    found = {(row["arm"], row["metric"]): row for row in rows if row["split"] == split}
    body = []
    for arm, name in GUIDANCES.items():
        cells = []
        for metric in METRICS:
            row = found[arm, metric]
            values = [f"{100 * float(row[key]):+.1f}" for key in row if key.startswith("difference") and row[key]]
            change = " ({} [{}, {}])".format(*values) if values else ""
            cells.append(f"{100 * float(row['mean']):.1f}{change}")
        about = found[arm, "presence"]
        body.append([name, about["alpha"] or "-", about["gamma"] or "-", *cells])
    about = found["none", "presence"]
    where = f"torch {about['torch']}, {about['date']}, commit {about['commit']}"
    what = f"{about['captions']} {split} captions, {about['pictures']} images per row, {where}"
    return what, ["guidance", "alpha", "gamma", *(f"{name}, %" for name in METRICS.values())], body


def named(statistic: str) -> str:
    """The loss of an arm by the arm's name in tables; other statistics as they are."""
    arm = statistic.removeprefix("loss of ")
    return statistic if arm == statistic else f"loss of {GUIDANCES[arm]}"


def maps(rows: Rows, kind: str) -> Table:
    """AUC of the statistics of the maps by size and step, with intervals; kind: "pooled" or "within"."""
    steps = list(dict.fromkeys(row["step"] for row in rows))
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        cell = f"{float(row[kind]):.2f} [{float(row[f'{kind}_low']):.2f}, {float(row[f'{kind}_high']):.2f}]"
        cells.setdefault((row["split"], row["statistic"], row["size"]), {})[row["step"]] = cell
    body = [
        [split, named(statistic), size, *(case[step] for step in steps)]
        for (split, statistic, size), case in sorted(cells.items(), key=lambda item: (item[0][1], item[0][0]))
        if split == "all" or statistic == "noun-noun"
    ]
    about = next(row for row in rows if row["split"] == "all")
    images = f"{about['images']} images of {about['captions']} captions, {about['failed']} of them without an object"
    mixed = f"the {about['mixed']} captions of which some images lack an object and some do not"
    what = {
        "pooled": f"All images compared ({images})",
        "within": f"Images of the same caption compared ({mixed})",
    }[kind]
    return what, ["captions", "statistic", "maps", *(f"step {step}" for step in steps)], body


def controls(rows: Rows) -> Table:
    """Presence and binding of each arm, the differences to no guidance, and what was repaired and damaged."""
    found = {(row["arm"], row["metric"]): row for row in rows}
    body = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        cells = []
        for metric in ("presence", "binding"):
            row = found[arm, metric]
            cell = f"{100 * float(row['value']):.1f}"
            if row["difference"]:
                ends = [f"{100 * float(row[f'difference{end}']):+.1f}" for end in ("", "_low", "_high")]
                cell += f" ({{}} [{{}}, {{}}]), p = {float(row['p_holm']):.2g}".format(*ends)
            cells.append(cell)
        row = found[arm, "presence"]
        shares = [
            f"{row[what]} of {row[whole]}" if row[what] else "-"
            for what, whole in (("repaired", "failed"), ("damaged", "succeeded"))
        ]
        body.append([f"`{arm}`" if ":" in arm else arm, *cells, *shares])
    about = rows[0]
    what = f"{about['images']} images per row, torch {about['torch']}, {about['date']}, commit {about['commit']}"
    header = ["arm", "every object present, %", "binding, %", "presence repaired", "presence damaged"]
    return what, header, body


def mended(rows: Rows) -> Table:
    """What each arm mends of images that lack an object, and damages of images that do not."""
    body = []
    for row in rows:
        cells = []
        for name, whole in (("mended", "failed"), ("damaged", "succeeded")):
            ends = [f"{100 * float(row[f'{name}_share{end}']):.0f}" for end in ("", "_low", "_high")]
            cells.append("{} of {}: {} % [{}, {}]".format(row[name], row[whole], *ends))
        changed = f"+{row['more_than_seed']} -{row['less_than_seed']}" if row["p"] else "-"
        p = [f"{float(row[name]):.2g}" if row[name] else "-" for name in ("p", "p_holm")]
        control, _, method = row["arm"].rpartition(": ")
        name = GUIDANCES.get(method, method)
        body.append(
            [
                f"random direction of {name}" if control else name,
                row["guided"] or "-",
                row["alpha"] or "-",
                *cells,
                changed,
                *p,
            ]
        )
    about = rows[0]
    what = (
        f"Captions of {about['objects']} objects, {about['steps']} steps, torch {about['torch']}, "
        f"{about['date']}, commit {about['commit']}"
    )
    header = [
        "arm",
        "guided steps",
        "alpha",
        "mended",
        "damaged",
        "images mended by one of it and another seed",
        "p",
        "p, Holm",
    ]
    return what, header, body


def premise(rows: Rows) -> Table:
    """Entries of T for a noun and its color, and for a noun and other colors."""
    cases: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        cell = f"{float(row['mean']):.3f} [{float(row['low']):.3f}, {float(row['high']):.3f}]"
        cases.setdefault((row["layer"], row["gamma"]), {})[row["quantity"]] = cell
    body = [
        [layer, gamma, *(case[name] for name in ("bound", "unbound", "bound - unbound", "strongest"))]
        for (layer, gamma), case in cases.items()
    ]
    header = ["layer", "gamma", "its color", "colors of earlier objects", "difference", "its color is the strongest"]
    return f"{rows[0]['nouns']} nouns of {rows[0]['captions']} captions, mean [95 % interval]", header, body


def joint_cost(rows: Rows) -> Table:
    """One guided step of a transformer, compared with eager maps."""
    body = []
    for row in rows:
        weights = "in the graph" if row["weights_in_graph"] == "True" else "frozen"
        size = f"{row['layers']} layers, {row['heads']} heads, {row['image_tokens']} + {row['text_tokens']} tokens"
        for other, what in (("eager", "eager"), ("chosen", "eager beside fused, chosen layers")):
            faster = (row[f"times_faster_than_{other}{end}"] for end in ("", "_min", "_max"))
            measured = [row[f"{name}_{unit}"] for unit in ("ms", "extra_mib") for name in ("ours", other)]
            body.append(
                [
                    size,
                    weights,
                    what,
                    *measured[:2],
                    "{} ({}-{})".format(*faster),
                    *measured[2:],
                    row[f"memory_of_{other}"],
                ]
            )
    header = ["transformer", "weights", "other", "ours, ms", "other, ms", "times faster (min-max)", "ours, MiB",
              "other, MiB", "memory, ours / other"]  # fmt: skip
    about = rows[0]
    return f"{about['device']}, torch {about['torch']}, diffusers {about['diffusers']}, {about['date']}", header, body


def cost(rows: Rows) -> Table:
    """One guided step, compared with diffusers."""
    body = []
    for row in rows:
        layers, divisor = row["layers_per_block"], row["width_divisor"]
        reduced = f"reduced: {layers} layer(s) per block, width / {divisor}"
        spread = f"{row['times_faster']} ({row['times_faster_min']}-{row['times_faster_max']})"
        model = "SD 1.5" if (layers, divisor) == ("2", "1") else reduced
        measured = [row[name] for name in ("ours_ms", "diffusers_ms")]
        memory = [row[name] for name in ("ours_extra_mib", "diffusers_extra_mib", "memory_ratio")]
        body.append([row["device"], f"{row['size']}²", model, row["dtype"], *measured, spread, *memory])
    header = ["device", "image", "model", "dtype", "ours, ms", "diffusers, ms", "times faster (min-max)", "ours, MiB",
              "diffusers, MiB", "memory, ours / theirs"]  # fmt: skip
    about = rows[0]
    return f"torch {about['torch']}, diffusers {about['diffusers']}, {about['date']}", header, body
