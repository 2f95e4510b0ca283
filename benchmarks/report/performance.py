"""The tables of docs/performance.md: targets and measurements, the static model, and host times."""

from __future__ import annotations

from collections.abc import Callable, Iterable

Rows = list[dict[str, str]]
Case = dict[str, float]  # median milliseconds by implementation
SDPA = ("sdpa-flash", "sdpa-cudnn", "sdpa-efficient")
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
STATIC_HEADER = [
    *("d", "schedule", "tile", "warps", "registers off / on", "instructions off / on", "exp in flight off / on"),
    *("tensor clk", "exp clk", "issue clk", "issue clk, entropy", "bound"),
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

    def speed(rows: Rows, *head_dims: int) -> str:
        return worst(min, ratios(long_cases(rows, *head_dims), SDPA, "triton"))

    def entropy(*head_dims: int) -> str:
        return worst(max, ratios(long_cases(forward, *head_dims), ("triton+entropy",), "triton"))

    longest = [case for (_, seqlen), case in cases(forward).items() if seqlen == LONGEST]
    kept = worst(min, ratios(longest, ("materialised+entropy",), "triton+entropy"))
    cross = cases([row for row in maps if row.get("pass") == "forward"]).values()
    map_costs = worst(max, ratios(cross, ("triton+map",), "triton"))
    map_gains = worst(min, ratios(cross, ("materialised+map",), "triton+map"))
    host = [float(row["ratio"]) for row in launch if row.get("ratio") and row["call"] == "self, 256 tokens"]
    return [
        ["forward, d 64 and 128, times the speed of the best of SDPA", ">= 0.90", speed(forward, 64, 128)],
        ["forward, d 80 and 160, which others pad", ">= 1.15", speed(forward, 80, 160)],
        ["entropy, d 128, times the plain kernel's time", "<= 1.05", entropy(128)],
        ["entropy, d 64", "<= 1.08", entropy(64)],
        ["entropy, N = 16,384, times the speed of a materialized softmax", ">= 20", kept],
        ["forward and backward, times the speed of the best of SDPA", ">= 0.85", speed(backward, 64, 128)],
        ["cross-attention with its map, times the time without", "<= 1.15", map_costs],
        ["cross-attention with its map, times the speed of a materialized softmax", ">= 5", map_gains],
        ["host time of a call at N = 256, times that of SDPA", "<= 1.5", worst(max, host)],
    ]


def static(rows: Rows, target: str = "sm_90") -> list[list[str]]:
    """Rows for one target: each head dim, schedule and tile, without and with entropy."""
    pairs: dict[tuple[str, ...], Rows] = {}
    for row in rows:
        if row["target"] == target:
            pairs.setdefault(tuple(row[name] for name in ("head_dim", "schedule", "block_m", "block_n")), []).append(
                row
            )
    return [
        [
            *(off["head_dim"], off["schedule"], f"{off['block_m']} x {off['block_n']}", off["warps"]),
            f"{off['registers']} / {on['registers']}",
            f"{off['instructions']} / {on['instructions']}",
            f"{100 * float(off['exp_in_flight']):.0f} / {100 * float(on['exp_in_flight']):.0f} %",
            *(off["tensor_clk"], off["exp_clk"], off["issue_clk"], on["issue_clk"], off["bound"]),
        ]
        for off, on in pairs.values()
    ]


def launch(rows: Rows) -> list[list[str]]:
    def line(row: dict[str, str]) -> list[str]:
        low, middle, high = (f"{float(row[f'p{p}_of_triton']):.2f}" for p in (20, 50, 80))
        times = [f"{float(row[name]):.0f}" for name in ("p20_us", "p50_us", "p80_us", "triton_us")]
        return [row["call"], *times, f"{middle} ({low} to {high})", row.get("torch_us") or "-"]

    return [line(row) for row in rows if row["p50_us"]]  # without calls that died or hung
