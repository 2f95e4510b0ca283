"""What should the compiled backward kernels cost on Hopper? Read from their machine code: no GPU is needed.

For each head dim and each way to compute the gradients, a row for every launch: matrix products and exponentials of a
score, registers, shared memory, instructions of the loop per score. Costs of a way are the sums over its launches.

    python -m benchmarks.kernels.codegen_backward --csv benchmarks/results/codegen_backward.csv
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import version

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.common import add_csv, add_json, new_parser, write_outputs
from entropy_attn.kernels.backward.configs import ALL_CHUNKS, BackwardConfig, backward_config
from entropy_attn.kernels.backward.launch import BackwardCall
from entropy_attn.kernels.backward.plan import Launch, largest_values
from entropy_attn.kernels.backward.rows import attention_backward_rows
from tests.codegen.test_backward import compile_launch, make_call

TARGET = "sm_90"
HEAD_DIMS = (40, 64, 128)
# Small tiles are those for a Triton whose loops have one stage; here they are compiled in two like the others.
WAYS = ("small tiles", "descriptors", "table", "table, 77 keys")
FIELDS = (
    "target", "head_dim", "entropy", "way", "kernel", "computes", "block_m", "block_n", "warps", "stages", "registers",
    "spilled", "shared_bytes", "products", "exp", "instructions", "exp_in_flight", "triton",
)  # fmt: skip


def configuration(way: str, head_dim: int, call: BackwardCall) -> BackwardConfig:
    if way.startswith("table"):
        return call.table_config()
    described = (way == "descriptors",) * 2
    dtype = call.call.query.dtype
    return backward_config(TARGET, head_dim, head_dim, dtype, one_stage=True, descriptors=described)


def launches(way: str, head_dim: int, entropy: bool) -> list[Launch]:
    """The two kernels' launches for all of dQ, dK and dV."""
    call = make_call(TARGET, head_dim, entropy=entropy, seqlen_k=77 if way.endswith("77 keys") else 1000)
    config = configuration(way, head_dim, call)
    rows, sums = call.allocate_rows(config), call.allocate_key_sums(config)
    assert rows.bounds is not None and largest_values(call.varying(rows, None, sums))[0] is not None  # float16
    return list(call.gradient_launches(config, rows, rows.bounds[..., 0], None, sums))


def results(launch: Launch) -> dict[str, int]:
    """The gradients that a launch computes, as bits of their chunks."""
    given = launch.arguments
    of_query = given.get("NEED_DQ", ALL_CHUNKS if given["dq"].ptr is not None else 0)
    return {"dQ": of_query, "dK": given.get("NEED_DK", 0), "dV": given.get("NEED_DV", 0)}


def products(launch: Launch) -> float:
    """Matrix products of a tile, in products over a whole head dim: of the scores, of dP, and of the results."""

    def part(bits: int) -> float:
        head_dim = launch.arguments["D"]
        return sum(chunk.width for i, chunk in enumerate(head_dim.chunks) if bits & (1 << i)) / head_dim.width

    of = results(launch)
    return 1 + (of["dQ"] > 0 or of["dK"] > 0) + sum(map(part, of.values()))


def row(way: str, head_dim: int, entropy: bool, launch: Launch) -> dict[str, object]:
    code, tiles = compile_launch(launch, TARGET), launch.config
    scores = tiles.block_m * tiles.block_n / (32 * tiles.num_warps)  # a thread in one iteration of the loop
    exp = code.loop["MUFU.EX2"]
    return {
        "target": TARGET, "head_dim": head_dim, "entropy": "on" if entropy else "off", "way": way,
        "kernel": launch.kernel.__name__, "computes": "+".join(name for name, bits in results(launch).items() if bits),
        "block_m": tiles.block_m, "block_n": tiles.block_n, "warps": tiles.num_warps, "stages": tiles.num_stages,
        "registers": code.registers, "spilled": code.spilled, "shared_bytes": code.shared,
        "products": f"{products(launch):.2f}", "exp": f"{exp / scores:.2f}",
        "instructions": f"{code.loop.total() / scores:.2f}",
        "exp_in_flight": f"{code.exp_in_flight / max(1, exp):.2f}", "triton": version("triton"),
    }  # fmt: skip


def totals(rows: list[dict]) -> Iterator[tuple[tuple, list[dict]]]:
    """The rows of one way of one call."""
    keys = dict.fromkeys((r["head_dim"], r["entropy"], r["way"]) for r in rows)
    for key in keys:
        yield key, [r for r in rows if (r["head_dim"], r["entropy"], r["way"]) == key]


def table(rows: list[dict]) -> Table:
    result = Table(title="backward on sm_90, fp16; of one score, summed over the launches of the gradients")
    for column in ("d", "entropy", "way", "launches", "products", "exp", "instructions", "registers", "spilled"):
        result.add_column(column, justify="right")
    for (head_dim, entropy, way), of in totals(rows):
        sums = [f"{sum(float(r[name]) for r in of):.2f}" for name in ("products", "exp", "instructions")]
        registers = " / ".join(str(r["registers"]) for r in of)
        result.add_row(
            str(head_dim), entropy, way, str(len(of)), *sums, registers, str(sum(r["spilled"] for r in of))
        )  # fmt: skip
    return result


def main() -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--head-dims", nargs="+", type=int, default=list(HEAD_DIMS))
    parser.add_argument("--entropy", nargs="+", choices=("off", "on"), default=["off", "on"])
    add_csv(parser)
    add_json(parser)
    args = parser.parse_args()
    cases = [(way, d, entropy == "on") for d in args.head_dims for entropy in args.entropy for way in WAYS]
    found = [(*case, launch) for case in cases for launch in launches(*case)]
    assert all(launch.kernel is not attention_backward_rows for *_, launch in found)
    rows = [row(*each) for each in track(found, "compiling", console=Console(stderr=True), transient=True)]
    Console(width=None if sys.stdout.isatty() else 160).print(table(rows))
    write_outputs(args, rows, FIELDS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
