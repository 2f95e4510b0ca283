"""Write README's measured tables from the CSV files in benchmarks/results; what has no file is "not yet measured".

python benchmarks/report.py            # rewrite README.md
python benchmarks/report.py --check    # exit code 1 where README.md differs from the files
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PEERS = ("sdpa-flash", "sdpa-cudnn", "sdpa-efficient")


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def forward_table(rows: list[dict[str, str]]) -> str:
    """TFLOP/s of every implementation, and what entropy adds to our own time."""
    if not rows:
        return "On a GPU: **not yet measured.** `make gpu` checks the kernels on a card and writes the figures."
    cases: dict[tuple[str, int, int], dict[str, dict[str, str]]] = {}
    for row in rows:
        key = (row["dtype"], int(row["head_dim"]), int(row["seqlen"]))
        cases.setdefault(key, {})[row["implementation"]] = row
    body = []
    for (dtype, head_dim, seqlen), by_name in sorted(cases.items()):
        cells = [by_name.get(name, {}).get("tflops") or "-" for name in ("triton", "triton+entropy", *PEERS)]
        times = [by_name.get(name, {}).get("p50_ms") for name in ("triton", "triton+entropy")]
        added = f"{100 * (float(times[1]) / float(times[0]) - 1):+.1f} %" if all(times) else "-"
        body.append([dtype, str(head_dim), str(seqlen), *cells, added])
    about = rows[0]
    header = ["dtype", "head dim", "N", "ours", "ours + entropy", *PEERS, "entropy adds"]
    return (
        f"Forward pass, TFLOP/s (useful FLOPs, median), {about['gpu']}, torch {about['torch']}, "
        f"Triton {about['triton']}, {about['date']}, commit {about['commit']}:\n\n{markdown(header, body)}"
    )


def shapes_table(rows: list[dict[str, str]]) -> str:
    """The checker's marks of the embedded model."""
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


SECTIONS = {
    ROOT / "README.md": {"forward": lambda: forward_table(read(RESULTS / "forward.csv"))},
    ROOT / "entropy_attn" / "shapes" / "README.md": {"shapes": lambda: shapes_table(read(RESULTS / "shapes.csv"))},
}


def rewritten(path: Path) -> str:
    """A document with every section between its markers made anew.

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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 where a document is stale")
    args = parser.parse_args()
    stale = [path for path in SECTIONS if rewritten(path) != path.read_text()]
    for path in stale:
        if not args.check:
            path.write_text(rewritten(path))
        print(f"{path.relative_to(ROOT)}: {'stale' if args.check else 'rewritten'}")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
