"""Write the tables of README.md and docs/ from the CSV files in benchmarks/results; without a file: "not yet measured".

python -m benchmarks.report            # rewrite the documents
python -m benchmarks.report --check    # exit code 1 if a document differs from the files
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import RESULTS, ROOT, new_parser, read_rows
from benchmarks.report import guidance, independent, machine_code, scales, science
from benchmarks.report import performance as perf

PEERS = ("sdpa-flash", "sdpa-cudnn", "sdpa-efficient")


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def by_case(rows: list[dict[str, str]], *names: str) -> dict[tuple, dict[str, dict[str, str]]]:
    """{case: {implementation: row}}; a case is the values of the columns `names`. In the order of the file."""
    cases: dict[tuple, dict[str, dict[str, str]]] = {}
    for row in rows:
        cases.setdefault(tuple(row[name] for name in names), {})[row["implementation"]] = row
    return cases


def measured_on(about: dict[str, str]) -> str:
    device = about.get("device") or about["gpu"]  # the older name of the column
    return f"{device}, torch {about['torch']}, Triton {about['triton']}, {about['date']}, commit {about['commit']}"


def added(case: dict[str, dict[str, str]], base: str, more: str) -> str:
    """How much longer `more` takes than `base`."""
    times = [case.get(name, {}).get("p50_ms") for name in (base, more)]
    return f"{100 * (float(times[1]) / float(times[0]) - 1):+.1f} %" if all(times) else "-"


def pass_table(rows: list[dict[str, str]], what: str, peers: tuple[str, ...]) -> str:
    """TFLOP/s of each implementation, and what entropy adds to our time; of other peers, those that ran."""
    ran = {row["implementation"] for row in rows if row["tflops"]}
    peers = (*peers, *(name for name in perf.SDPA if name in ran and name not in peers))
    body = []
    for (dtype, head_dim, seqlen), case in by_case(rows, "dtype", "head_dim", "seqlen").items():
        cells = [case.get(name, {}).get("tflops") or "-" for name in ("triton", "triton+entropy", *peers)]
        body.append([dtype, head_dim, seqlen, *cells, added(case, "triton", "triton+entropy")])
    header = ["dtype", "head dim", "N", "ours", "ours + entropy", *peers, "entropy adds"]
    return f"{what}, TFLOP/s (useful FLOPs, median), {measured_on(rows[0])}:\n\n{markdown(header, body)}"


def forward_table(rows: list[dict[str, str]]) -> str:
    if not rows:
        return "On a GPU: **not yet measured.** `make gpu` checks the kernels on a card and writes the figures."
    return pass_table(rows, "Forward pass", PEERS)


def backward_table(rows: list[dict[str, str]]) -> str:
    if not rows:
        return "Forward and backward together: **not yet measured.**"
    return pass_table(rows, "Forward and backward pass", (*PEERS, "flex"))


def maps_table(rows: list[dict[str, str]]) -> str:
    """Milliseconds with and without the map, compared with a materialized softmax."""
    if not rows:
        return "Cross-attention with its map: **not yet measured.**"
    names = ("triton", "triton+map", "materialised+map", "triton+map, gradient", "materialised+map, gradient")
    rows = [
        row | {"implementation": row["implementation"] + ", gradient" * (row.get("pass") == "both")} for row in rows
    ]
    body = []
    for (heads, seqlen, head_dim), case in by_case(rows, "heads", "seqlen", "head_dim").items():
        cells = [case.get(name, {}).get("p50_ms") or case.get(name, {}).get("status") or "-" for name in names]
        body.append([f"{heads} x {head_dim}", seqlen, *cells, added(case, "triton", "triton+map")])
    header = ["heads x head dim", "N", *(name.replace("triton", "ours") for name in names), "the map adds"]
    return f"Cross-attention over 77 tokens, ms (median), {measured_on(rows[0])}:\n\n{markdown(header, body)}"


def cpu_table(by_what: dict[str, list[dict[str, str]]]) -> str:
    """Times and memory of benchmarks/cpu."""
    others = {"": "the whole matrix", "chunked_": "chunks of it", "compiled_": "it compiled"}

    def times(row: dict[str, str], other: str) -> str:
        ratios = [row.get(f"{other}ratio{end}") for end in ("", "_min", "_max")]
        return "{} ({}-{})".format(*ratios) if all(ratios) else "-"

    body = [
        [what, row["tokens"], row["head_dim"], row["dtype"], row["threads"], row["sdpa_ms"],
         *(times(row, other) for other in others), row["sdpa_extra_mib"], row["materialised_extra_mib"]]
        for what, rows in by_what.items()
        for row in rows
    ]  # fmt: skip
    if not body:
        return "Not yet measured."
    about = next(rows[0] for rows in by_what.values() if rows)
    header = ["what", "N", "head dim", "dtype", "threads", "ours, ms",
              *(f"times as fast as {other}" for other in others.values()), "ours, MiB", "the matrix, MiB"]  # fmt: skip
    heads = f"batch {about['batch']}, {about['heads']} heads"
    return f"{about['cpu']}, torch {about['torch']}, {heads}, median (min-max):\n\n{markdown(header, body)}"


def shapes_table(rows: list[dict[str, str]]) -> str:
    """The scores of the embedded model."""
    if not rows:
        return "Not yet measured."

    def percent(text: str) -> str:
        return f"{100 * float(text):.1f} %" if text else "-"

    header = ["captions", "size", "scale", "every object present", "exact count", "both", "binding", "relation",
              "count error"]  # fmt: skip
    body = [
        [f"{row['captions']} {row['split']}", row["size"], row["scale"],
         *(percent(row[name]) for name in ("presence", "count", "exact", "binding", "relation")),
         f"{float(row['count_error']):.2f}"]
        for row in rows
    ]  # fmt: skip
    return markdown(header, body)


def shapes_scale_table(rows: list[dict[str, str]]) -> str:
    """What scale policies change in an embedded model, by size."""
    return markdown(scales.HEADER, scales.table(rows)) if rows else scales.ABSENT


def drift_table(name: str) -> str:
    """How far policies leave the entropy from that of the training size."""
    rows = read_rows(RESULTS / f"{name}.csv")
    return markdown(scales.DRIFT_HEADER, scales.drifts(rows)) if rows else scales.ABSENT


def negative_table() -> str:
    """What a negative text keeps out of the images of the embedded UNet."""
    rows = read_rows(RESULTS / "shapes_negative.csv")
    return markdown(scales.NEGATIVE_HEADER, scales.negatives(rows)) if rows else scales.ABSENT


def performance_sections() -> dict[str, Callable[[], str]]:
    def rows(name: str) -> list[dict[str, str]]:
        return read_rows(RESULTS / f"{name}.csv")

    def launch_table() -> str:
        found = rows("launch")
        if not found:
            return "Not yet measured."
        without = "" if found[0]["driver_part"] == "included" else ", without the driver's part"
        return f"{measured_on(found[0])}{without}:\n\n{markdown(perf.LAUNCH_HEADER, perf.launch(found))}"

    def step_table() -> str:
        found = rows("step")
        commits = list(dict.fromkeys(row["commit"] for row in found))
        about = f"{measured_on(found[-1])}; before: commit {commits[0]}"
        return f"{about}:\n\n{markdown(perf.STEP_HEADER, perf.step(found))}"

    def static_table() -> str:
        found = rows("codegen_peers")
        if not found:
            return "Not yet compiled."
        compilers = sorted({f"{row['kernel']}: {row['compiler']}" for row in found})
        body = markdown(machine_code.HEADER, machine_code.table(found))
        return f"fp16, no mask; {'; '.join(compilers)}:\n\n{body}\n\nPublished by others:\n\n{machine_code.sources()}"

    measured = ("forward", "backward", "maps", "launch")
    return {
        "targets": lambda: markdown(perf.TARGETS_HEADER, perf.targets(*map(rows, measured))),
        "static": static_table,
        "replay": lambda: markdown(machine_code.REPLAY_HEADER, machine_code.replay(rows("replay"))),
        "backward-static": lambda: markdown(perf.BACKWARD_HEADER, perf.backward(rows("codegen_backward"))),
        "launch": launch_table,
        "step": step_table,
        "cross": lambda: markdown(perf.CROSS_HEADER, perf.cross(rows("cross"))),
    }


def guidance_table(name: str, make: Callable[..., guidance.Table], *options: str) -> str:
    rows = read_rows(RESULTS / f"{name}.csv")
    if not rows:
        return "Not yet measured."
    what, header, body = make(rows, *options)
    return f"{what}:\n\n{markdown(header, body)}"


def guided_step() -> str:
    on_gpu = any(row["driver"] for row in read_rows(RESULTS / "tsam_cost.csv"))
    missing = "" if on_gpu else "\n\nOn a GPU: **not yet measured.** `make gpu` writes the rows."
    return guidance_table("tsam_cost", guidance.cost) + missing


def claims_table() -> str:
    return markdown(science.HEADER, science.table(lambda name: read_rows(RESULTS / f"{name}.csv")))


def suite_table(rows: list[dict[str, str]]) -> str:
    """The tests of diffusers with and without routing."""
    if not rows:
        return "Not yet measured."
    columns = ("model", "passed", "passed_routed", "refused", "broken", "failed_in_both", "skipped")
    header = ["tests of", "passed", "passed, routed", "refused", "broken", "failed in both", "skipped"]
    versions = sorted({f"diffusers {row['diffusers']}, torch {row['torch']}" for row in rows})
    return f"{'; '.join(versions)}:\n\n{markdown(header, [[row[name] for name in columns] for row in rows])}"


SECTIONS = {
    ROOT / "docs" / "diffusers-suite.md": {"suite": lambda: suite_table(read_rows(RESULTS / "diffusers_suite.csv"))},
    ROOT / "docs" / "performance.md": performance_sections(),
    ROOT / "README.md": {
        "picture": lambda: scales.sentence(read_rows(RESULTS / "shapes_scale.csv"), "96x96"),
        "forward": lambda: forward_table(read_rows(RESULTS / "forward.csv")),
        "backward": lambda: backward_table(read_rows(RESULTS / "backward.csv")),
        "maps": lambda: maps_table(read_rows(RESULTS / "maps.csv")),
        "cpu": lambda: cpu_table(
            {
                "output and entropy": read_rows(RESULTS / "cpu_entropy.csv"),
                "output, map over 77 tokens, gradients": read_rows(RESULTS / "cpu_maps.csv"),
            }
        ),
    },
    ROOT / "entropy_attn" / "shapes" / "README.md": {"shapes": lambda: shapes_table(read_rows(RESULTS / "shapes.csv"))},
    **{
        card: {
            "scale": lambda: shapes_scale_table(read_rows(RESULTS / "shapes_scale.csv")),
            "extrapolated": lambda: shapes_scale_table(read_rows(RESULTS / "shapes_scale_extrapolated.csv")),
        }
        for card in ROOT.glob("entropy_attn/shapes/transformer/README.md")
    },
    ROOT / "docs" / "scale.md": {
        "interpolated": lambda: shapes_scale_table(read_rows(RESULTS / "shapes_scale.csv")),
        "extrapolated": lambda: shapes_scale_table(read_rows(RESULTS / "shapes_scale_extrapolated.csv")),
        "unet": lambda: shapes_scale_table(read_rows(RESULTS / "shapes_scale_unet.csv")),
    },
    ROOT / "docs" / "methods.md": {
        "held-drift": lambda: drift_table("shapes_target_drift"),
        "held": lambda: shapes_scale_table(read_rows(RESULTS / "shapes_target.csv")),
        "held-unet-drift": lambda: drift_table("shapes_target_unet_drift"),
        "held-unet": lambda: shapes_scale_table(read_rows(RESULTS / "shapes_target_unet.csv")),
    },
    ROOT / "docs" / "mix.md": {"negative": negative_table},
    ROOT / "docs" / "papers.md": {
        "controls": lambda: guidance_table("guidance_controls", guidance.controls),
    },
    ROOT / "docs" / "guidance-measured.md": {
        "premise": lambda: guidance_table("tsam_premise", guidance.premise),
        "maps-pooled": lambda: guidance_table("maps_auc", guidance.maps, "pooled"),
        "maps-within": lambda: guidance_table("maps_auc", guidance.maps, "within"),
        "seen": lambda: guidance_table("tsam", guidance.marks, "seen"),
        "held-out": lambda: guidance_table("tsam", guidance.marks, "held-out"),
        "neglect-pooled": lambda: guidance_table("neglect_maps", guidance.maps, "pooled"),
        "neglect-within": lambda: guidance_table("neglect_maps", guidance.maps, "within"),
        "neglect": lambda: guidance_table("neglect", guidance.mended),
        "cost": guided_step,
        "joint-cost": lambda: guidance_table("guidance_joint_cost", guidance.joint_cost),
    },
    ROOT / "docs" / "science.md": {"claims": claims_table},
    ROOT / "docs" / "independent.md": {
        "terrain": lambda: guidance_table("terrain", independent.terrain),
        "slopes": lambda: guidance_table("terrain", independent.slopes),
        "changes": lambda: guidance_table("terrain", independent.changes),
        "forms": lambda: guidance_table("premise_minilm", independent.forms),
        "layers": lambda: guidance_table("premise_minilm", independent.layers),
    },
}


def rewritten(path: Path) -> str:
    """A document with new tables between its markers.

    Raises:
        ValueError: a marker pair is missing.
    """
    text = path.read_text()
    for name, table in SECTIONS[path].items():
        pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(\n<!-- {name}:end -->)", re.S)
        if not pattern.search(text):
            raise ValueError(f"{path.name}: no section between <!-- {name}:begin --> and <!-- {name}:end -->")
        fresh = table()
        text = pattern.sub(lambda match, fresh=fresh: match.group(1) + fresh + match.group(2), text)
    return text


def main() -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if a document is out of date")
    args = parser.parse_args()
    stale = [path for path in SECTIONS if rewritten(path) != path.read_text()]
    for path in stale:
        if not args.check:
            path.write_text(rewritten(path))
        print(f"{path.relative_to(ROOT)}: {'out of date' if args.check else 'rewritten'}")
    return 1 if args.check and stale else 0
