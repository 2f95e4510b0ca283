"""What bounds cross-attention over 77 keys, with and without its map? Read from machine code; nothing is timed.

For each shape of SD 1.5 and SDXL: the instructions that a program executes per score of the 77 keys, and the clocks per
score that each unit of a multiprocessor needs, and the memory for queries, outputs, and the parts of the map with their
sum. Keys and values are in the second-level cache. `steps` counts heads that a multiprocessor goes through one after
another, in rounds of programs; `parts_filled` and `steps_filled` are what they would be if the map's heads were divided
into as many parts as it takes to give every multiprocessor a program.

    python -m benchmarks.kernels.cross --csv benchmarks/results/cross.csv
    python -m benchmarks.kernels.cross --targets sm_80 sm_90
"""

from __future__ import annotations

import functools
import sys
from importlib.metadata import version

from rich.console import Console
from rich.progress import track

from benchmarks.common import add_csv, add_json, new_parser, write_outputs
from benchmarks.kernels.codegen import UNITS, occupancy
from benchmarks.kernels.maps import shapes
from entropy_attn.kernels.common.targets import MULTIPROCESSORS
from entropy_attn.kernels.maps.configs import MapConfig, heads_per_program, map_programs
from tests.codegen.aot import Code, compile_call
from tests.codegen.test_forward import make_call
from tests.codegen.test_maps import compile_map

KEYS = 77
# Bytes of DRAM per clock and multiprocessor, from the white papers: GB/s by multiprocessors by boost clock in GHz.
MEMORY = {"sm_80": 2039 / (108 * 1.41), "sm_90": 3352 / (132 * 1.83)}


def clocks(target: str, head_dim: int, width: int, executed: float, exp: float, map_bytes: float) -> dict[str, float]:
    """Clocks per score of the 77 keys; `executed` and `exp` are instructions of a warp per score."""
    unit, row = UNITS[target], 2 * 2 * head_dim + map_bytes  # half precision
    return {
        "tensor_clk": 4 * width / unit.flops,
        "exp_clk": exp / unit.exp,
        "issue_clk": executed / unit.lanes,
        "memory_clk": row / KEYS / MEMORY[target],
    }


@functools.cache
def without_map(target: str, head_dim: int) -> tuple[Code, int, int, float, float, float]:
    """Code, queries, warps, instructions and exponentials per score, columns of products: of the forward kernel."""
    call = make_call(target, head_dim, seqlen_k=KEYS, entropy=False, layout="bshd")
    config = call.table_config()
    code = compile_call(call, config)
    scores = config.block_m * KEYS / (32 * config.num_warps)  # of a thread
    rounds = KEYS // config.block_n - 1  # of the loop beyond the first; the rest of the keys have code of their own
    executed = code.program.total() + rounds * code.loop.total()
    exp = code.program["MUFU.EX2"] + rounds * code.loop["MUFU.EX2"]
    computed = -(-KEYS // config.block_n) * config.block_n / KEYS * config.in_chunks(head_dim).width
    return code, config.block_m, config.num_warps, executed / scores, exp / scores, computed


@functools.cache
def compiled_map(target: str, head_dim: int) -> tuple[Code, MapConfig]:
    return compile_map(target, head_dim, statistics=False, seqlen_k=KEYS, heads_inside=True)


def with_map(target: str, head_dim: int, heads: int) -> tuple[Code, int, int, float, float, float]:
    """The same of the kernel with the map, whose loop goes through `heads` heads."""
    code, config = compiled_map(target, head_dim)
    scores = config.block_m * KEYS / (32 * config.num_warps)
    once = code.program.total() - code.loop.total()
    executed = code.loop.total() + once / heads
    computed = config.block_n / KEYS * config.in_chunks(head_dim).width
    return code, config.block_m, config.num_warps, executed / scores, code.loop["MUFU.EX2"] / scores, computed


def steps(target: str, heads: int, num_heads: int, programs: int) -> int:
    """Heads that a multiprocessor goes through one after another."""
    return -(-programs * -(-num_heads // heads) // MULTIPROCESSORS[target]) * heads


def rows_of(target: str, batch: int, num_heads: int, seqlen: int, head_dim: int) -> list[dict[str, object]]:
    about = {"target": target, "heads": num_heads, "seqlen": seqlen, "head_dim": head_dim}
    found = []
    for name in ("forward", "map"):
        heads, alone = 1, batch * num_heads * -(-seqlen // 128)
        filled = 0
        if name == "map":
            _, config = compiled_map(target, head_dim)
            alone = map_programs(config, batch, 1, seqlen, KEYS)
            heads = heads_per_program(target, num_heads, alone, config.num_warps)
            filled = -(-num_heads // min(num_heads, -(-MULTIPROCESSORS[target] // alone)))
        of_kernel = without_map(target, head_dim) if name == "forward" else with_map(target, head_dim, heads)
        code, block_m, warps, executed, exp, width = of_kernel
        parts = 0 if name == "forward" else -(-num_heads // heads)
        moved = 2 * parts + 1 if parts > 1 else parts  # each part is written and read, and the sum is written
        times = clocks(target, head_dim, width, executed, exp, 4 * KEYS * moved / num_heads)
        found.append({
            **about, "kernel": name, "block_m": block_m, "warps": warps, "registers": code.registers,
            "shared_bytes": code.shared, "warps_per_sm": occupancy(target, code, warps),
            "instructions": f"{executed:.2f}", "exp": f"{exp:.2f}", **{k: f"{clk:.4f}" for k, clk in times.items()},
            "bound": max(times, key=times.__getitem__).removesuffix("_clk"), "parts": parts or "",
            "steps": steps(target, heads, num_heads, alone) if name == "map" else -(-alone // MULTIPROCESSORS[target]),
            "parts_filled": -(-num_heads // filled) if filled else "",
            "steps_filled": steps(target, filled, num_heads, alone) if name == "map" else "",
            "triton": version("triton"),
        })  # fmt: skip
    return found


def main() -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--targets", nargs="+", choices=list(MEMORY), default=["sm_90"])
    add_csv(parser)
    add_json(parser)
    args = parser.parse_args()
    cases = [(t, w) for t in args.targets for w in shapes()]
    found = []
    for target, w in track(cases, "compiling", console=Console(stderr=True), transient=True):
        found += rows_of(target, w.batch, w.heads, w.seqlen, w.head_dim)
    for row in found:
        print(row, flush=True)
    write_outputs(args, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
