"""How does a guidance compare with another seed, a random direction and a layout oracle? The rows of an evaluation.

    entropy-attn evaluate guidance --batch 10 --steps 10 --guidance tsam:alpha=2.5:steps=0..5 \\
        --guidance attend-and-excite:alpha=2.5:steps=0..5 --out evaluation
    python -m benchmarks.guidance.controls --evaluation evaluation

Adds machine, versions, commit and date to what `entropy-attn evaluate guidance` wrote, and joins its two tables.
"""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.common import RESULTS, add_commit, add_csv, new_parser, read_rows, write_rows
from entropy_attn.bench.machine import machine, version

TABLE = RESULTS / "guidance_controls.csv"
REPAIRS = ("failed", "repaired", "repaired_share", "repaired_share_low", "repaired_share_high",
           "succeeded", "damaged", "damaged_share", "damaged_share_low", "damaged_share_high")  # fmt: skip


def joined(folder: Path) -> list[dict[str, str]]:
    """A row for each arm and metric; repairs are empty without guidance and for metrics that are not yes or no.

    Raises:
        ValueError: the folder has no guidance.csv.
    """
    repairs = {(row["arm"], row["metric"]): row for row in read_rows(folder / "repairs.csv")}
    rows = read_rows(folder / "guidance.csv")
    if not rows:
        raise ValueError(f"--evaluation: expected a folder with guidance.csv, got {str(folder)!r}")
    empty = dict.fromkeys(REPAIRS, "")
    return [row | {name: repairs.get((row["arm"], row["metric"]), empty)[name] for name in REPAIRS} for row in rows]


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--evaluation", type=Path, required=True, help="the folder of the evaluation")
    add_csv(parser, TABLE)
    add_commit(parser)
    args = parser.parse_args()
    about = machine(torch.device("cpu"), args.commit)
    del about["driver"], about["triton"]
    versions = {name: version(name) for name in ("diffusers", "transformers")}
    write_rows(args.csv, [row | versions | about for row in joined(args.evaluation)])


if __name__ == "__main__":
    main()
