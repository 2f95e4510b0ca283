"""The tables of docs/independent.md, from the files of benchmarks/independent."""

from __future__ import annotations

Rows = list[dict[str, str]]
Table = tuple[str, list[str], list[list[str]]]  # caption, header, cells
FILES = {"color": "T2I-CompBench", "evaluation_metadata": "GenEval"}  # whose prompts these are


def _cell(row: dict[str, str] | None, digits: int, factor: float = 1.0) -> str:
    if row is None:
        return "-"
    mean, low, high = (f"{factor * float(row[name]):.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _about(row: dict[str, str], library: str) -> str:
    return f"{library} {row[library]}, torch {row['torch']}, {row['date']}, commit {row['commit']}"


def terrain(rows: Rows) -> Table:
    """Entropy of each group of layers at each size, and what LogN undoes of its drift."""
    found = {(row["layers"], row["size"], row["scale"], row["quantity"]): row for row in rows}
    body = []
    for layers, size in dict.fromkeys((row["layers"], row["size"]) for row in rows if row["quantity"] == "entropy"):
        undone = found.get((layers, size, "logn", "undone"))
        body.append([
            layers, f"{size}²",
            _cell(found[layers, size, "off", "entropy"], 2),
            *(_cell(found.get((layers, size, scale, "drift")), 3) for scale in ("off", "logn")),
            _cell(undone, 3), f"{float(undone['predicted']):.3f}" if undone else "-",
            _cell(found.get((layers, size, "logn", "share")), 0, 100),
        ])  # fmt: skip
    header = ["layers", "image", "entropy, off", "drift, off", "drift, LogN", "LogN takes off", "… by Eq. 5",
              "share of the drift, %"]  # fmt: skip
    what = f"{rows[0]['seeds']} seeds, nats, mean [95 % interval over seeds]; {_about(rows[0], 'diffusers')}"
    return what, header, body


def slopes(rows: Rows) -> Table:
    """Slope of the entropy against ln N."""
    found = {(row["layers"], row["scale"]): row for row in rows if row["quantity"] == "slope"}
    layers = dict.fromkeys(layers for layers, _ in found)
    body = [[each, *(_cell(found[each, scale], 3) for scale in ("off", "logn"))] for each in layers]
    return "Slope of the mean entropy against ln N", ["layers", "off", "LogN"], body


def changes(rows: Rows) -> Table:
    """How far LogN moves the image."""
    found = [row for row in rows if row["quantity"] == "change"]
    found.sort(key=lambda row: int(row["size"]))
    what = "Root mean square change of the image by LogN, in % of the range of its values"
    return what, [f"{row['size']}²" for row in found], [[_cell(row, 2, 100) for row in found]]


def forms(rows: Rows) -> Table:
    """The premise in the mean over the layers, for each form of captions."""
    chosen = [row for row in rows if row["layer"] == "mean" and row["gamma"] == "1"]
    found = {(row["form"], row["row"], row["order"], row["quantity"]): row for row in chosen}
    body = []
    for form, reader in dict.fromkeys((row["form"], row["row"]) for row in chosen):
        written = [found.get((form, reader, "written", name)) for name in ("bound", "unbound", "bound - unbound")]
        some = next(row for row in chosen if row["form"] == form)
        body.append([
            FILES.get(form, form), some["captions"], reader, *(_cell(row, 3) for row in written),
            _cell(found.get((form, reader, "shuffled", "bound - unbound")), 3),
            _cell(found.get((form, reader, "written", "strongest")), 2),
            _cell(found.get((form, reader, "written", "bound - matched")), 4),
        ])  # fmt: skip
    header = ["captions", "number", "row of a", "its word", "words of other objects", "difference",
              "difference, words shuffled", "its word is the strongest", "difference, same distance"]  # fmt: skip
    return f"Mean over the layers, gamma 1, mean [95 % interval]; {_about(rows[0], 'transformers')}", header, body


def layers(rows: Rows) -> Table:
    """The premise layer by layer."""
    columns = [
        ("near", "bound - unbound", "near"),
        ("after and far", "bound - matched", "after and far, same distance"),
    ]
    found = {(row["layer"], row["gamma"], row["form"], row["quantity"], row["row"]): row
             for row in rows if row["order"] == "written"}  # fmt: skip
    body = [
        [layer, gamma, *(_cell(found[layer, gamma, form, quantity, reader], 3)
                         for reader in ("noun", "color") for form, quantity, _ in columns)]
        for layer, gamma in dict.fromkeys((row["layer"], row["gamma"]) for row in rows)
    ]  # fmt: skip
    header = ["layer", "gamma", *(f"{reader}: {name}" for reader in ("noun", "color") for *_, name in columns)]
    return "Differences of the entries of T, mean [95 % interval]", header, body
