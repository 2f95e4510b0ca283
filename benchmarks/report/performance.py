"""The tables of docs/performance.md: targets and measurements, the static model, and host times."""

from __future__ import annotations

from collections.abc import Callable, Iterable

Rows = list[dict[str, str]]
Case = dict[str, float]  # median milliseconds by implementation
# "The best of SDPA" is the fastest that ran of all exact implementations of plain attention in the bench but ours.
SDPA = (
    *("sdpa", "sdpa-flash", "sdpa-cudnn", "sdpa-efficient", "sdpa-math", "sdpa-fa3", "sdpa-fa4", "sdpa-cudnn-python"),
    *("flash-attn-2", "flash-attn-3", "flash-attn-4", "flex", "flex-flash", "helion", "tlx", "triton-tutorial"),
    "xformers",
)
FLASH4 = ("sdpa-fa4", "flash-attn-4", "flex-flash")  # FlashAttention-4, by whichever call: it does not pad a head dim
NOT_YET = "not yet measured"
LONG, LONGEST = (
    4096,
    16_384,
)  # tokens: targets hold from LONG; entropy is compared with a materialized softmax at LONGEST

TARGETS_HEADER = ["on an H100, bfloat16, not causal", "target", "measured"]
LAUNCH_HEADER = [
    "call",
    "p20, us",
    "p50, us",
    "p80, us",
    "Triton's path, us",
    "of Triton's, p50 (p20 to p80)",
    "torch's, us",
]


STEP_HEADER = ["32 attention calls of a step", "calls of Python functions", "of C functions", "p50, us", "p20 - p80"]
CROSS_HEADER = [
    *("heads x d", "N", "kernel", "registers", "instructions", "exp clk", "tensor clk", "issue clk", "memory clk"),
    *("bound", "parts", "steps", "parts and steps, if filled"),
]


def cases(rows: Rows) -> dict[tuple[int, int], Case]:
    """{(head dim, N): case} of the rows in bfloat16 that have a time."""
    found: dict[tuple[int, int], Case] = {}
    for row in rows:
        if row["dtype"] == "bfloat16" and row.get("p50_ms"):
            case = found.setdefault((int(row["head_dim"]), int(row["seqlen"])), {})
            case[row["implementation"]] = float(row["p50_ms"])
    return found


def long_cases(rows: Rows, *head_dims: int) -> list[Case]:
    return [case for (head_dim, seqlen), case in cases(rows).items() if head_dim in head_dims and seqlen >= LONG]


def ratios(chosen: Iterable[Case], above: tuple[str, ...], below: str) -> list[float]:
    """Time of the fastest of `above` divided by that of `below`, for cases in which both have a time."""
    found = []
    for case in chosen:
        times = [case[name] for name in above if name in case]
        found += [min(times) / case[below]] if times and below in case else []
    return found


def worst(pick: Callable[[list[float]], float], found: list[float]) -> str:
    return f"{pick(found):.2f}" if found else NOT_YET


def targets(forward: Rows, backward: Rows, maps: Rows, launch: Rows) -> list[list[str]]:
    """Rows of (what, target, measured): ratios within one run, the worst over lengths from 4096."""

    def speed(rows: Rows, peers: tuple[str, ...], *head_dims: int, ours: str = "triton") -> str:
        chosen = long_cases(rows, *head_dims)
        measured = worst(min, ratios(chosen, peers, ours))
        if measured == NOT_YET or peers is not SDPA or all(any(name in case for name in FLASH4) for case in chosen):
            return measured
        return f"{measured}, without FlashAttention-4"  # which the target means to include

    def entropy(*head_dims: int) -> str:
        return worst(max, ratios(long_cases(forward, *head_dims), ("triton+entropy",), "triton"))

    others = tuple(name for name in SDPA if name not in FLASH4)
    longest = [case for (_, seqlen), case in cases(forward).items() if seqlen == LONGEST]
    kept = worst(min, ratios(longest, ("materialised+entropy",), "triton+entropy"))
    cross = cases([row for row in maps if row.get("pass") == "forward"]).values()
    map_costs = worst(max, ratios(cross, ("triton+map",), "triton"))
    map_gains = worst(min, ratios(cross, ("materialised+map",), "triton+map"))
    host = [float(row["ratio"]) for row in launch if row.get("ratio") and row["call"] == "self, 256 tokens"]
    return [
        ["forward, d 64 and 128, times the speed of the best of SDPA", ">= 0.95", speed(forward, SDPA, 64, 128)],
        ["forward, d 40, 80 and 160, times the speed of the best but FlashAttention-4", ">= 1.00",
         speed(forward, others, 40, 80, 160)],
        ["forward with entropy, d 64 and 128, times the speed of FlashAttention-4 without", ">= 0.95",
         speed(forward, ("flash-attn-4",), 64, 128, ours="triton+entropy")],
        ["entropy, d 128, times the plain kernel's time", "<= 1.05", entropy(128)],
        ["entropy, d 64", "<= 1.08", entropy(64)],
        ["entropy, N = 16,384, times the speed of a materialized softmax", ">= 20", kept],
        ["forward and backward, times the speed of the best of SDPA", ">= 0.90", speed(backward, SDPA, 64, 128)],
        ["cross-attention with its map, times the time without", "<= 1.15", map_costs],
        ["cross-attention with its map, times the speed of a materialized softmax", ">= 5", map_gains],
        ["host time of a call at N = 256, times that of SDPA", "<= 1.5", worst(max, host)],
    ]  # fmt: skip


def launch(rows: Rows) -> list[list[str]]:
    def line(row: dict[str, str]) -> list[str]:
        low, middle, high = (f"{float(row[f'p{p}_of_triton']):.2f}" for p in (20, 50, 80))
        times = [f"{float(row[name]):.0f}" for name in ("p20_us", "p50_us", "p80_us", "triton_us")]
        return [row["call"], *times, f"{middle} ({low} to {high})", row.get("torch_us") or "-"]

    return [line(row) for row in rows if row["p50_us"]]  # without calls that died or hung


def step(rows: Rows) -> list[list[str]]:
    """The first commit of the file, and the last one behind it."""
    before, after = ({row["step"]: row for row in rows if row["commit"] == rows[i]["commit"]} for i in (0, -1))

    def cell(name: str, column: str) -> str:
        first, last = (found[name][column] for found in (before, after))
        return last if before == after else f"{first} -> {last}"

    return [
        [name, *(cell(name, c) for c in ("python_calls", "c_calls", "p50_us")), f"{row['p20_us']} - {row['p80_us']}"]
        for name, row in after.items()
    ]


def cross(rows: Rows) -> list[list[str]]:
    columns = ("registers", "instructions", "exp_clk", "tensor_clk", "issue_clk", "memory_clk", "bound")
    return [
        [
            f"{row['heads']} x {row['head_dim']}", row["seqlen"],
            "with map" if row["kernel"] == "map" else "without", *(row[name] for name in columns),
            row["parts"] or "-", row["steps"],
            f"{row['parts_filled']}, {row['steps_filled']}" if row["parts_filled"] else "-",
        ]
        for row in rows
    ]  # fmt: skip
