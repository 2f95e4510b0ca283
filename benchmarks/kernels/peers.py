"""How does our machine code compare with that of other fused attention on Hopper? No GPU is needed, nothing is timed.

Compiles the forward kernels of FlashAttention-4 (the extra `peers`), also with entropy added, and of Triton's tutorial
(`python/tutorials/06-fused-attention.py` of Triton's repository), and reads them as `codegen` reads ours. Kernels that
are not asked for keep their rows in the file.

    python -m benchmarks.kernels.peers --ours --flash4 --csv benchmarks/results/codegen_peers.csv
    python -m benchmarks.kernels.peers --tutorial 06-fused-attention.py --csv benchmarks/results/codegen_peers.csv
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.common import add_csv, new_parser, read_rows, write_rows
from benchmarks.kernels import codegen, flash4, tutorial
from benchmarks.kernels.codegen import HEAD_DIMS, Launch
from tests.codegen import sass
from tests.codegen.aot import Code

TARGET = "sm_90"
OURS, FLASH4, TUTORIAL = KERNELS = ("ours", "FlashAttention-4", "Triton's tutorial")
FIELDS = (
    "kernel", *(name for name in codegen.FIELDS if name != "triton"), "loop_registers", "spills", "products",
    "arrivals", "compiler",
)  # fmt: skip
TURNS, PLAIN = "ping-pong", "plain"  # schedules
MIN_WARPS = 8  # on a multiprocessor: two groups, which overlap with each other


def counted(kernel: str, launch: Launch, code: Code, compiler: str) -> dict[str, object]:
    """One row of the table."""
    more = {
        "loop_registers": code.listing.loop_registers,
        "spills": code.listing.spills,
        "products": code.matrix_instructions,
        "arrivals": code.listing.arrivals,
    }
    return {"kernel": kernel} | codegen.counts(launch, code) | more | {"compiler": compiler}


def our_rows(head_dim: int) -> Iterator[dict[str, object]]:
    """Every schedule, without and with entropy."""
    for config in codegen.configurations(TARGET, head_dim):
        for entropy in (False, True):
            made = codegen.compiled(TARGET, head_dim, entropy, config)
            yield counted(OURS, *made, f"triton {version('triton')}")


def flash4_row(head_dim: int, entropy: bool) -> dict[str, object]:
    """One row of the table."""
    made = flash4.compile_forward(head_dim, entropy)
    listing = sass.read(sass.disassemble(made.cubin))
    used = sass.resources(made.cubin)
    code = Code(
        registers=used["REG"], spilled=None, stack=used["STACK"], shared=made.shared, listing=listing,
        program=sass.histogram(listing.instructions), loop=sass.histogram(listing.loop),
    )  # fmt: skip
    schedule = TURNS if listing.arrivals else "specialized"
    launch = Launch(
        TARGET, head_dim, schedule, entropy, made.block_m, made.block_n, made.stages, made.warps, made.computing,
        made.width,
    )  # fmt: skip
    return counted(FLASH4, launch, code, ", ".join(f"{name} {version(name)}" for name in flash4.PACKAGES))


def tutorial_row(path: Path, head_dim: int) -> dict[str, object]:
    """The configuration with the fewest instructions per score, of those that do not spill and leave room for 8 warps.

    The tutorial itself chooses by measurement.
    """
    found, compiler = [], f"triton {version('triton')}, {tutorial.version(path)}"
    for config, code in tutorial.candidates(tutorial.load(path), head_dim):
        tile = config.kwargs["BLOCK_M"], config.kwargs["BLOCK_N"]
        warps = config.num_warps
        launch = Launch(TARGET, head_dim, PLAIN, False, *tile, config.num_stages, warps, warps, head_dim)
        row = counted(TUTORIAL, launch, code, compiler)
        if row["spills"] == 0 and row["warps_per_sm"] >= MIN_WARPS:
            found.append(row)
    return min(found, key=lambda row: (float(row["instructions"]), row["shared_bytes"]))


def rows_of(args: argparse.Namespace) -> list[dict[str, object]]:
    rows = []
    if args.ours:
        rows += [row for head_dim in args.head_dims for row in our_rows(head_dim)]
    if args.flash4:
        rows += [flash4_row(head_dim, entropy) for head_dim in args.head_dims for entropy in (False, True)]
    if args.tutorial:
        rows += [tutorial_row(args.tutorial, head_dim) for head_dim in tutorial.HEAD_DIMS if head_dim in args.head_dims]
    return rows


def table(rows: list[dict[str, object]]) -> Table:
    result = Table(title="forward on sm_90, fp16, no mask; instructions are for one score")
    columns = ("kernel", "d", "entropy", "tile", "warps", "registers", "spills", "shared", "instructions", "fma",
               "exp in flight")  # fmt: skip
    for column in columns:
        result.add_column(column, justify="right")
    for row in rows:
        tile = f"{row['block_m']} x {row['block_n']}"
        names = ("warps", "registers", "spills", "shared_bytes", "instructions", "fma", "exp_in_flight")
        result.add_row(row["kernel"], str(row["head_dim"]), row["entropy"], tile, *(str(row[name]) for name in names))
    return result


def _existing(text: str) -> Path:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"expected a file, got {text!r}")
    return Path(text)


def main() -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--ours", action="store_true", help="compile ours, in every schedule")
    parser.add_argument("--flash4", action="store_true", help="compile FlashAttention-4")
    parser.add_argument("--tutorial", type=_existing, metavar="FILE", help="compile the tutorial in this file")
    parser.add_argument("--head-dims", nargs="+", type=int, choices=HEAD_DIMS, default=list(HEAD_DIMS))
    add_csv(parser)
    args = parser.parse_args()
    if not (args.ours or args.flash4 or args.tutorial):
        parser.error("expected at least one of --ours, --flash4 and --tutorial FILE")
    rows = rows_of(args)
    Console(width=None if sys.stdout.isatty() else 160).print(table(rows))
    if args.csv:
        new = {(row["kernel"], str(row["head_dim"])) for row in rows}
        kept = [row for row in read_rows(args.csv) if (row["kernel"], row["head_dim"]) not in new]
        ordered = sorted([*kept, *rows], key=lambda row: (int(row["head_dim"]), KERNELS.index(row["kernel"])))
        write_rows(args.csv, ordered, FIELDS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
