"""What should the compiled forward kernels cost? Read from their machine code: no GPU is needed, nothing is timed.

For each target and head dim: registers, shared memory, occupancy, instructions in the loop per score, and the clocks
that each unit of a multiprocessor needs per score. If all units overlap, the slowest one limits the speed; if the
exponential waits for the matrix products, their times add up. The true speed lies between the two. Targets and head
dims that are not asked for keep their rows in the file.

    python -m benchmarks.kernels.codegen --csv benchmarks/results/codegen.csv
    python -m benchmarks.kernels.codegen --targets sm_90 --head-dims 64 128
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.common import add_csv, add_json, new_parser, replace_rows, write_json
from entropy_attn.kernels.common.targets import SHARED_MEMORY, TARGETS
from entropy_attn.kernels.forward.configs import ForwardConfig, forward_candidates
from tests.codegen.aot import Code, compile_call
from tests.codegen.test_forward import make_call

SEQLEN = 1024  # fills every block
HEAD_DIMS = (40, 64, 80, 96, 128, 160, 256)
FIELDS = (
    "target", "head_dim", "schedule", "entropy", "block_m", "block_n", "warps", "stages", "registers", "shared_bytes",
    "warps_per_sm", "instructions", "matrix", "exp", "fma", "memory", "other", "tensor_clk", "exp_clk", "issue_clk",
    "exp_in_flight", "bound", "triton",
)  # fmt: skip
REGISTERS, MAX_WARPS = 65_536, {"sm_89": 48, "sm_120": 48}  # of a multiprocessor; 64 warps elsewhere


@dataclass(frozen=True)
class Unit:
    """What one multiprocessor (compute unit) does per clock."""

    flops: int  # dense fp16 products with float32 sums
    exp: int  # 2**x
    lanes: int  # instructions times threads


# From the vendors' white papers (A100, AD102, H100, B200, GB202, CDNA 3): peak TFLOP/s by multiprocessors by clock.
UNITS = {
    "sm_80": Unit(2048, 16, 128),
    "sm_89": Unit(512, 16, 128),
    "sm_90": Unit(4096, 16, 128),
    "sm_100": Unit(8192, 16, 128),
    "sm_120": Unit(512, 16, 128),
    "gfx942": Unit(2048, 16, 64),
}
FMA = ("FFMA", "FFMA2", "FMUL", "FMUL2", "FADD", "FADD2", "HFMA2", "v_fma", "v_mul", "v_add", "v_sub", "v_pk")
MEMORY = ("LD", "ST", "RED", "UTMA", "UBLKCP", "ds_", "buffer_", "global_", "flat_")


WHOLE_BLOCKS = ("specialized",)  # need keys that fill their blocks; all others are compiled for an unknown length


@dataclass(frozen=True)
class Launch:
    """What of a kernel is not in its machine code."""

    target: str
    head_dim: int
    schedule: str
    entropy: bool
    block_m: int  # queries a program
    block_n: int  # keys an iteration of the loop
    stages: int
    warps: int
    computing: int  # of the warps: they share the tile of scores
    width: int  # the head dim of the products: the padded one


def configurations(target: str, head_dim: int) -> list[ForwardConfig]:
    """The configuration of the static table, and those with other schedules of the loop that autotuning tries."""
    candidates = forward_candidates(target, head_dim, head_dim, torch.float16, seqlen_k=SEQLEN)
    return [candidates[0], *(c for c in candidates if c.schedule != "plain")]


def row(target: str, head_dim: int, entropy: bool, config: ForwardConfig | None = None) -> dict[str, object]:
    """One row of the table."""
    return counts(*compiled(target, head_dim, entropy, config)) | {"triton": version("triton")}


def compiled(target: str, head_dim: int, entropy: bool, config: ForwardConfig | None = None) -> tuple[Launch, Code]:
    """Our kernel of one configuration; None is that of the static table."""
    whole = config is not None and config.schedule in WHOLE_BLOCKS
    call = make_call(target, head_dim, entropy=entropy, **({"seqlen_k": SEQLEN} if whole else {}))
    config = config or call.table_config()
    computing, loading = (groups * config.num_warps for groups in config.groups)
    launch = Launch(
        target, head_dim, config.schedule, entropy, config.block_m, config.block_n, config.num_stages,
        computing + loading, computing, config.in_chunks(head_dim).width,
    )  # fmt: skip
    return launch, compile_call(call, config)


def counts(launch: Launch, code: Code) -> dict[str, object]:
    """The columns of a kernel, whoever wrote it, but for the compiler.

    Raises:
        ValueError: the loop computes another number of scores than the launch says.
    """
    threads = (64 if launch.target == "gfx942" else 32) * launch.computing
    scores = launch.block_m * launch.block_n / threads  # per thread in one iteration of the loop
    exp = sum(n for op, n in code.loop.items() if op == "MUFU.EX2" or op.startswith("v_exp_f32"))
    if not scores <= exp <= scores + 8:
        raise ValueError(
            f"loop of {launch}: expected {scores:.0f} scores a thread and few more, got {exp} exponentials"
        )
    fma = sum(n for op, n in code.loop.items() if op.startswith(FMA))
    memory = sum(n for op, n in code.loop.items() if op.startswith(MEMORY))
    total, matrix = code.loop.total(), code.matrix_instructions
    unit = UNITS[launch.target]
    clocks = {
        "tensor_clk": 4 * launch.width / unit.flops,
        "exp_clk": exp / scores / unit.exp,
        "issue_clk": total / scores / unit.lanes,
    }
    per_score = {"instructions": total, "matrix": matrix, "exp": exp, "fma": fma, "memory": memory}
    per_score["other"] = total - matrix - exp - fma - memory
    return {
        "target": launch.target, "head_dim": launch.head_dim, "schedule": launch.schedule,
        "entropy": "on" if launch.entropy else "off", "block_m": launch.block_m, "block_n": launch.block_n,
        "warps": launch.warps, "stages": launch.stages, "registers": code.registers, "shared_bytes": code.shared,
        "warps_per_sm": occupancy(launch.target, code, launch.warps),
        **{name: f"{n / scores:.2f}" for name, n in per_score.items()},
        **{name: f"{clk:.4f}" for name, clk in clocks.items()},
        "exp_in_flight": f"{code.exp_in_flight / max(1, exp):.2f}",
        "bound": max(clocks, key=clocks.get).removesuffix("_clk"),
    }  # fmt: skip


def occupancy(target: str, code: Code, num_warps: int) -> int:
    """Warps that run at a time on a multiprocessor, limited by registers and shared memory."""
    registers = -(-code.registers // 8) * 8
    if target == "gfx942":  # four SIMD units, each with 512 registers per lane and at most 8 waves
        by_registers = 4 * min(8, 512 // registers) // num_warps
    else:
        by_registers = min(REGISTERS // (registers * 32), MAX_WARPS.get(target, 64)) // num_warps
    return min(by_registers, SHARED_MEMORY[target] // max(1, code.shared)) * num_warps


def overhead(off: dict, on: dict) -> tuple[float, float]:
    """What entropy adds to the time of a loop, in percent: if all units overlap, and if the products wait."""

    def times(r: dict) -> tuple[float, float]:
        tensor, exp, issue = (float(r[name]) for name in ("tensor_clk", "exp_clk", "issue_clk"))
        return max(tensor, exp, issue), tensor + max(exp, issue)

    return tuple(100 * (after / before - 1) for before, after in zip(times(off), times(on), strict=True))


def pairs(rows: list[dict]) -> Iterator[tuple[dict, dict]]:
    """The rows of one kernel without and with entropy."""
    yield from zip(rows[::2], rows[1::2], strict=True)


def table(rows: list[dict]) -> Table:
    result = Table(title="forward, fp16, no mask; instructions and clocks are for one score")
    columns = ("target", "d", "schedule", "tile", "registers", "warps / SM", "instructions", "bound", "with entropy",
               "entropy adds, overlapped - serial")  # fmt: skip
    for column in columns:
        result.add_column(column, justify="right")
    for off, on in pairs(rows):
        low, high = overhead(off, on)
        result.add_row(
            off["target"], str(off["head_dim"]), off["schedule"],
            f"{off['block_m']}x{off['block_n']}, {off['warps']} warps",
            f"{off['registers']} / {on['registers']}", f"{off['warps_per_sm']} / {on['warps_per_sm']}",
            off["instructions"], off["bound"], on["instructions"], f"{low:.1f} - {high:.1f} %",
        )  # fmt: skip
    return result


def main() -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--head-dims", nargs="+", type=int, default=list(HEAD_DIMS))
    add_csv(parser)
    add_json(parser)
    args = parser.parse_args()
    kernels = [(t, d, c) for t in args.targets for d in args.head_dims for c in configurations(t, d)]
    cases = [(t, d, entropy, c) for t, d, c in kernels for entropy in (False, True)]
    rows = [row(*case) for case in track(cases, "compiling", console=Console(stderr=True), transient=True)]
    Console(width=None if sys.stdout.isatty() else 160).print(table(rows))
    if args.csv:
        replace_rows(
            args.csv, rows, FIELDS, ("target", "head_dim"),
            order=lambda row: (list(TARGETS).index(row["target"]), int(row["head_dim"])),
        )  # fmt: skip
    if args.json:
        write_json(args.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
