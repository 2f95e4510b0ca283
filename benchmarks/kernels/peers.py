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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.common import add_csv, new_parser, replace_rows
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
TURNS, PLAIN = "pingpong", "plain"  # schedules
MIN_WARPS = 8  # on a multiprocessor: two groups, which overlap with each other


@dataclass(frozen=True)
class Kernel:
    """One kernel of the table."""

    name: str  # one of KERNELS
    launch: Launch
    code: Code
    compiler: str

    def row(self) -> dict[str, object]:
        listing = self.code.listing
        more = {
            "loop_registers": listing.loop_registers,
            "spills": listing.spills,
            "products": self.code.matrix_instructions,
            "arrivals": listing.arrivals,
        }
        return {"kernel": self.name} | codegen.counts(self.launch, self.code) | more | {"compiler": self.compiler}


def ours(head_dim: int) -> Iterator[Kernel]:
    """Every schedule, without and with entropy."""
    for config in codegen.configurations(TARGET, head_dim):
        for entropy in (False, True):
            yield Kernel(OURS, *codegen.compiled(TARGET, head_dim, entropy, config), f"triton {version('triton')}")


def by_flash4(head_dim: int, entropy: bool) -> Kernel:
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
    return Kernel(FLASH4, launch, code, ", ".join(f"{name} {version(name)}" for name in flash4.PACKAGES))


def by_tutorial(path: Path, head_dim: int) -> Kernel:
    """The configuration with the fewest instructions per score, of those that do not spill and leave room for 8 warps.

    The tutorial itself chooses by measurement.
    """
    found, compiler = [], f"triton {version('triton')}, {tutorial.version(path)}"
    for config, code in tutorial.candidates(tutorial.load(path), head_dim):
        tile = config.kwargs["BLOCK_M"], config.kwargs["BLOCK_N"]
        warps = config.num_warps
        launch = Launch(TARGET, head_dim, PLAIN, False, *tile, config.num_stages, warps, warps, head_dim)
        kernel = Kernel(TUTORIAL, launch, code, compiler)
        if code.listing.spills == 0 and codegen.occupancy(TARGET, code, warps) >= MIN_WARPS:
            found.append(kernel)
    return min(found, key=lambda kernel: (float(kernel.row()["instructions"]), kernel.code.shared))


def kernels(args: argparse.Namespace) -> Iterator[Kernel]:
    """Those that the options ask for."""
    for head_dim in args.head_dims:
        if args.ours:
            yield from ours(head_dim)
        if args.flash4:
            yield from (by_flash4(head_dim, entropy) for entropy in (False, True))
        if args.tutorial and head_dim in tutorial.HEAD_DIMS:
            yield by_tutorial(args.tutorial, head_dim)


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


def options(doc: str | None, head_dims: Sequence[int]) -> argparse.Namespace:
    """What `kernels` and a file of results need, from the command line."""
    parser = new_parser(doc)
    parser.add_argument("--ours", action="store_true", help="compile ours, in every schedule")
    parser.add_argument("--flash4", action="store_true", help="compile FlashAttention-4")
    parser.add_argument("--tutorial", type=_existing, metavar="FILE", help="compile the tutorial in this file")
    parser.add_argument("--head-dims", nargs="+", type=int, choices=HEAD_DIMS, default=list(head_dims))
    add_csv(parser)
    args = parser.parse_args()
    if not (args.ours or args.flash4 or args.tutorial):
        parser.error("expected at least one of --ours, --flash4 and --tutorial FILE")
    return args


def main() -> int:
    args = options(__doc__, HEAD_DIMS)
    rows = [kernel.row() for kernel in kernels(args)]
    Console(width=None if sys.stdout.isatty() else 160).print(table(rows))
    if args.csv:
        replace_rows(
            args.csv, rows, FIELDS, ("kernel", "head_dim"),
            order=lambda row: (int(row["head_dim"]), KERNELS.index(row["kernel"])),
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
