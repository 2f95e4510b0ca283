"""The table of docs/science.md: each claim of the two papers with its numbers, from the files in benchmarks/results."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.report import scales

Rows = list[dict[str, str]]
HEADER = ["claim", "measured on", "number [95 % interval]", "page"]

TERRAIN = "terrain model, trained by others"
UNET = "embedded UNet"
MINILM = "MiniLM, trained by others"
NEGLECT = "model that neglects what it knows"
NEGLECT_PAGE = "guidance-measured.md#on-a-model-that-neglects-what-it-knows"


def interval(row: dict[str, str], digits: int = 2, percent: bool = False, value: str = "mean") -> str:
    """A mean and its interval, from the columns mean, low and high, or value, value_low and value_high."""
    names = ("mean", "low", "high") if value == "mean" else (value, f"{value}_low", f"{value}_high")
    middle, low, high = (float(row[name]) * (100 if percent else 1) for name in names)
    unit = " %" if percent else ""
    return f"{middle:.{digits}f}{unit} [{low:.{digits}f}, {high:.{digits}f}]"


def only(rows: Rows, **wanted: str) -> dict[str, str]:
    """The one row with these values.

    Raises:
        ValueError: there is none, or there are several.
    """
    found = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    if len(found) != 1:
        raise ValueError(f"rows: expected one with {wanted}, got {len(found)}")
    return found[0]


def _levels(rows: Rows, **wanted: str) -> list[dict[str, str]]:
    return [only(rows, layers=level, **wanted) for level in ("T=1024", "T=256", "T=64")]


def growth(rows: Rows) -> list[list[str]]:
    slopes = [interval(row) for row in _levels(rows, size="all", scale="off", quantity="slope")]
    number = f"slope {slopes[2]} where attention is nearly uniform, {slopes[1]}, {slopes[0]} where it is sharp"
    return [["Entropy grows with ln N, with slope 1", f"three levels of layers: {TERRAIN}",
             number, "[independent.md](independent.md)"]]  # fmt: skip


def held(rows: Rows) -> list[list[str]]:
    shares = [interval(row, 0, True) for row in _levels(rows, size="256", scale="logn", quantity="share")]
    number = (
        f"undoes {shares[0]} of the drift where attention is sharp, {shares[1]}, {shares[2]} where it is nearly uniform"
    )
    return [["LogN holds the entropy", f"three levels of layers: {TERRAIN}",
             number, "[independent.md](independent.md)"]]  # fmt: skip


def newton(rows: Rows) -> list[list[str]]:
    lines = []
    for regime in ("responsive", "one-hot", "averaging"):
        found = [row for row in rows if row["regime"] == regime]
        where = f"{len(found)} of {len(rows)} layers"

        def span(name: str, found: Rows = found) -> str:
            values = sorted(100 * float(row[name]) for row in found)
            ends = f"{values[0]:.0f} %" if len(values) == 1 else f"{values[0]:.0f} to {values[-1]:.0f} %"
            return ends

        number = f"LogN undoes {span('logn_undone')} of the drift; one Newton step {span('hold_undone')}"
        claim = f"A factor on the scale holds the entropy of {regime} layers"
        measured = f"{UNET} at twice the size, {where}"
        lines.append([claim, measured, number, "[profile.md](profile.md#hold-entropyjson)"])
    return lines


def embedded_premise(rows: Rows) -> list[list[str]]:
    row = only(rows, layer="mean", gamma="1", quantity="bound - unbound")
    return [["Words that belong together attend to each other in the text encoder", f"{UNET}'s encoder",
             f"attention of a noun to its color, minus to others: {interval(row)}",
             "[guidance-measured.md](guidance-measured.md)"]]  # fmt: skip


def minilm_premise(rows: Rows) -> list[list[str]]:
    near = only(rows, form="near", order="written", row="noun", layer="mean", gamma="1", quantity="bound - unbound")
    matched = only(
        rows, form="after and far", order="written", row="noun", layer="mean", gamma="1", quantity="bound - matched"
    )
    return [["", f"{MINILM}, words that are neighbors", f"the same difference: {interval(near)}",
             "[independent.md](independent.md)"],
            ["", f"{MINILM}, words at equal distance", f"at the same distance: {interval(matched, 4)}",
             "[independent.md](independent.md)"]]  # fmt: skip


def maps(rows: Rows) -> list[list[str]]:
    def area(size: str, step: str) -> str:
        row = only(rows, split="all", statistic="noun-noun", size=size, step=step)
        return interval(row, value="within")

    early = f"at step 0: {area('16x16', '0')}"
    number = f"AUC at step 3: maps of 16 x 16 {area('16x16', '3')}, of 8 x 8 {area('8x8', '3')}; {early}"
    return [["Overlapping maps of two nouns predict that an object will be missing", f"{UNET}, 10 steps", number,
             "[guidance-measured.md](guidance-measured.md)"]]  # fmt: skip


def neglect_maps(rows: Rows) -> list[list[str]]:
    def area(step: str) -> str:
        return interval(only(rows, statistic="noun-noun", step=step), value="within")

    number = f"AUC at step 3: {area('3')}, at step 5: {area('5')}, at step 6: {area('6')}; at step 0: {area('0')}"
    return [["", f"{NEGLECT}, maps of 16 x 16, 10 steps", number, f"[guidance-measured.md]({NEGLECT_PAGE})"]]


def neglect(rows: Rows) -> list[list[str]]:
    def share(row: dict[str, str]) -> str:
        return interval(row, 0, True, "mended_share")

    seed = only(rows, arm="another seed")
    lines = []
    for row in rows:
        if row["arm"] == "oracle map":
            number = f"mends {share(row)} of {row['failed']}, another seed {share(seed)}; p = {row['p_holm']}"
            claim = "" if lines else "Guidance that knows the layout mends images that lack an object"
            where = f"{NEGLECT}, guided steps {row['guided']} of {row['steps']}"
            lines.append([claim, where, number, f"[guidance-measured.md]({NEGLECT_PAGE})"])
    return lines


def guided(rows: Rows) -> list[list[str]]:
    lines = []
    for arm, name in (("tsam-released", "T-SAM"), ("attend-and-excite", "Attend-and-Excite")):
        row = only(rows, arm=arm, split="held-out", metric="presence")
        points = interval(row, 1, True, "difference").replace(" %", "")
        lines.append([f"{name} mends images that lack an object", f"{UNET}, held-out captions",
                      f"every object present, difference in percentage points: {points}",
                      "[guidance-measured.md](guidance-measured.md)"])  # fmt: skip
    return lines


def cost(rows: Rows) -> list[list[str]]:
    row = only(rows, size="512")
    number = f"{row['times_faster']} x as fast ({row['times_faster_min']} to {row['times_faster_max']}), "
    return [["A guided step need not store the maps of every head", f"SD 1.5's shapes, 512 px, {row['device']}",
             f"{number}{float(row['memory_ratio']):.0%} of the memory of diffusers' Attend-and-Excite",
             "[guidance-measured.md](guidance-measured.md#what-a-guided-step-costs)"]]  # fmt: skip


def images(rows: Rows) -> list[list[str]]:
    lines = scales.differences(rows, "embedded transformer, positions interpolated", ("96x96", "128x128"))
    return _by_scale("A scale mends images of another size", lines)


def extrapolated(rows: Rows) -> list[list[str]]:
    return _by_scale("", scales.differences(rows, "embedded transformer, positions extrapolated", ("96x96",)))


def unet_images(rows: Rows) -> list[list[str]]:
    return _by_scale("", scales.differences(rows, UNET, ("96x96",)))


def held_images(rows: Rows) -> list[list[str]]:
    lines = scales.differences(rows, UNET, ("96x96",), HELD)
    return _by_scale("Holding the entropy step by step mends images of another size", lines, METHODS)


def held_transformer(rows: Rows) -> list[list[str]]:
    model = "embedded transformer, positions interpolated"
    return _by_scale("", scales.differences(rows, model, ("96x96", "128x128"), HELD), METHODS)


def negative(rows: Rows) -> list[list[str]]:
    found = {arm: one["has the color"] for arm, one in scales.by_arm(rows).items() if arm != "off"}
    number = "; ".join(f"{arm} {scales.change(one, 100, 0)}" for arm, one in found.items())
    claim = "NAG keeps what a negative text names out of images, without classifier-free guidance"
    page = "[mix.md](mix.md#measured-on-the-embedded-unet)"
    return [[claim, "embedded UNet, empty prompt", f"images with an object of the color, points: {number}", page]]


HELD = ("TargetEntropy, per layer", "control: its mean factor", "control: mean of each layer")
METHODS = "[methods.md](methods.md#measured-a-held-entropy)"
SCALE = "[scale.md](scale.md#on-the-embedded-models)"


def _by_scale(claim: str, lines: list[list[str]], page: str = SCALE) -> list[list[str]]:
    return [["" if number else claim, *line, page] for number, line in enumerate(lines)]


# name of the file in benchmarks/results -> its lines, in the order of the table
CLAIMS: list[tuple[str, Callable[[Rows], list[list[str]]]]] = [
    ("terrain", growth),
    ("terrain", held),
    ("hold", newton),
    ("shapes_scale", images),
    ("shapes_scale_extrapolated", extrapolated),
    ("shapes_scale_unet", unet_images),
    ("shapes_target_unet", held_images),
    ("shapes_target", held_transformer),
    ("shapes_negative", negative),
    ("tsam_premise", embedded_premise),
    ("premise_minilm", minilm_premise),
    ("maps_auc", maps),
    ("neglect_maps", neglect_maps),
    ("neglect", neglect),
    ("tsam", guided),
    ("tsam_cost", cost),
]


def table(read: Callable[[str], Rows]) -> list[list[str]]:
    """The cells of every claim; `read` answers the rows of a results file by its name."""
    return [line for name, lines in CLAIMS for line in lines(read(name))]
