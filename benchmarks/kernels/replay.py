"""How long should the loop of a kernel for Hopper take? Predicted from its machine code; published speeds judge it.

Replays the loop on one of the four schedulers of a multiprocessor, which has one warp of each group of four. Modelled
are issue in order with the stall counts and scoreboards that the assembler wrote, the widths of the units, matrix
products in a queue, and the barriers by which groups wait for each other (BAR). Barriers in shared memory (SYNCS) are
taken to let a warp pass: loads are there in time, and groups that take turns by them are not kept in order.

The model promises too much (docs/performance.md), so nothing is chosen by it.

    python -m benchmarks.kernels.replay --flash4 --tutorial 06-fused-attention.py --csv benchmarks/results/replay.csv
    python -m benchmarks.kernels.replay --ours --head-dims 128
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.common import write_rows
from benchmarks.kernels.peers import Kernel, kernels, options
from entropy_attn.kernels.common.targets import MULTIPROCESSORS
from tests.codegen.sass import Instruction

CLOCK = 1.6e9  # Hz, assumed: an H100 runs between 1.3 and 1.98 GHz, by its load
HEAD_DIMS = (64, 80, 96, 128)  # of which speeds are published
ITERATIONS, SETTLED = 40, 10  # replayed, and of these left out
FIELDS = (
    "kernel", "head_dim", "schedule", "entropy", "block_m", "block_n", "groups", "cycles", "tensor_busy", "tflops",
    "clock_ghz", "compiler",
)  # fmt: skip

# Cycles for which an instruction of a warp holds its unit: 32 threads by the unit's lanes on a scheduler.
UNITS = {
    **dict.fromkeys(("FFMA", "FMUL", "FADD", "HFMA2"), ("fma", 1)),
    "MUFU": ("exp", 8),
    "SHFL": ("memory", 4),
    **dict.fromkeys(("LDS", "STS", "LDSM", "STSM", "LDG", "STG", "LDL", "STL"), ("memory", 8)),
    **dict.fromkeys(("BRA", "NOP", "WARPGROUP", "BAR", "SYNCS", "DEPBAR", "WARPSYNC", "R2UR"), (None, 0)),
}
LATENCY = {"MUFU": 30, "SHFL": 24, "LDS": 29, "LDSM": 33, "STS": 25, "SYNCS": 30}  # of those that set a scoreboard
OTHER_LATENCY = 20
DRAIN = 30  # cycles from the end of a group of products until its results can be read
BARRIER = 12  # cycles from the last arrival until warps go on
QUEUED = 1  # products that may wait behind the one that runs


@dataclass(eq=False)
class Warp:
    """A warp of one group, at an instruction of the loop."""

    at: int = 0
    rounds: int = 0
    ready: int = 0  # the cycle from which it may issue
    scoreboards: list[list[int]] = field(default_factory=lambda: [[] for _ in range(6)])  # cycles of release
    products: list[int] = field(default_factory=list)  # cycles at which groups of products end
    turns: int = 0  # arrivals of others that it has not used up
    waits: bool = False  # at a barrier of the whole program
    ends: list[int] = field(default_factory=list)  # the cycle of each end of the loop


def unit(instruction: Instruction) -> tuple[str | None, int]:
    """The unit that executes an instruction, and for how many cycles it is busy."""
    name = instruction.opcode.split(".")[0]
    if name == "HGMMA":  # of 64 rows: 4096 operations a cycle on the multiprocessor
        return "tensor", int(re.search(r"64x(\d+)x16", instruction.opcode).group(1)) // 2
    return UNITS.get(name) or (("uniform", 2) if name.startswith("U") else ("integer", 2))


def cycles(loop: Sequence[Instruction], groups: int, programs: int = 1) -> float:
    """Cycles of an iteration in which every group computes its part of a tile.

    Args:
        loop: with the bits for scheduling.
        groups: of four warps, in a program.
        programs: that run on the multiprocessor at a time.

    Raises:
        ValueError: the loop has no bits for scheduling.
        RuntimeError: every warp waits for another.
    """
    if not any(instruction.control for instruction in loop):
        raise ValueError("loop: expected instructions with bits for scheduling, got a listing without hexadecimal code")
    warps = [Warp() for _ in range(groups * programs)]
    for first in range(0, len(warps), groups):
        warps[first].turns = 1
    takes_turns = any(i.opcode.startswith("BAR.ARV") for i in loop)
    free: dict[str, int] = {}
    queue: list[int] = []  # cycles at which products end
    now = last = 0
    while any(warp.rounds < ITERATIONS for warp in warps):
        earliest: list[int] = []
        for offset in range(1, len(warps) + 1):  # the scheduler serves warps in turn
            number = (last + offset) % len(warps)
            warp, program = warps[number], warps[number // groups * groups :][:groups]
            instruction = loop[warp.at]
            if warp.rounds == ITERATIONS or _held(warp, program, instruction, takes_turns):
                continue
            start = _start(warp, instruction, free, queue)
            if start > now:
                earliest.append(start)
                continue
            _issue(warp, program, instruction, takes_turns, now, free, queue)
            for other in program:
                if other.at == len(loop):
                    other.at, other.rounds = 0, other.rounds + 1
                    other.ends.append(now)
            last = number
            break
        else:
            if not earliest:
                raise RuntimeError("loop: every warp waits for another")
            now = min(earliest)
            continue
        now += 1
    ends = warps[0].ends[SETTLED:]
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def _held(warp: Warp, program: list[Warp], instruction: Instruction, takes_turns: bool) -> bool:
    """Whether a warp has to wait for others."""
    if not instruction.opcode.startswith("BAR.SYNC") or _of_one_group(instruction):
        return False
    if takes_turns:
        return warp.turns == 0
    warp.waits = True
    return not all(other.waits or other.rounds == ITERATIONS for other in program)


def _of_one_group(instruction: Instruction) -> bool:
    """Whether a barrier is for four warps, of which a scheduler has one; without a number of threads it is for all."""
    _, *threads = instruction.operands.split(",")
    return bool(threads) and int(threads[0], 16) <= 128


def _start(warp: Warp, instruction: Instruction, free: dict[str, int], queue: list[int]) -> int:
    """The first cycle in which nothing but the other warps' issue keeps an instruction back."""
    start = warp.ready
    for number, releases in enumerate(warp.scoreboards):
        if instruction.control >> 11 + number & 1:
            start = max([start, *releases])
    if instruction.opcode.startswith("WARPGROUP.DEPBAR"):
        running = int(instruction.operands.split(",")[-1], 16)
        start = max([start, *sorted(warp.products)[: max(0, len(warp.products) - running)]])
    name, _ = unit(instruction)
    if name == "tensor":
        return max(start, queue[-1 - QUEUED]) if len(queue) > QUEUED else start
    return max(start, free.get(name, 0))


def _issue(
    warp: Warp, program: list[Warp], instruction: Instruction, takes_turns: bool, now: int, free: dict[str, int],
    queue: list[int],
) -> None:  # fmt: skip
    name, busy = unit(instruction)
    if instruction.opcode.startswith("BAR.SYNC") and _of_one_group(instruction):
        warp.ready = now + BARRIER
    elif instruction.opcode.startswith("BAR") and takes_turns:
        following = program[(program.index(warp) + 1) % len(program)]
        if instruction.opcode.startswith("BAR.SYNC"):
            warp.turns -= 1
        else:
            following.turns += 1
    elif instruction.opcode.startswith("BAR.SYNC"):
        for other in (other for other in program if other.waits):
            other.waits, other.ready = False, max(other.ready, now + BARRIER)
            other.at += other is not warp
    if name == "tensor":
        queue.append(max(now, queue[-1] if queue else 0) + busy)
        del queue[: -2 - QUEUED]
        if "gsb0" in instruction.operands:
            warp.products = [end for end in warp.products if end > now] + [queue[-1] + DRAIN]
    elif name:
        free[name] = now + busy
    control = instruction.control
    latency = LATENCY.get(instruction.opcode.split(".")[0], OTHER_LATENCY)
    for scoreboard, release in ((control >> 5 & 7, now + latency), (control >> 8 & 7, now + max(8, busy))):
        if scoreboard != 7:  # none
            pending = warp.scoreboards[scoreboard]
            pending[:] = [end for end in pending if end > now] + [release]
    warp.ready = max(warp.ready, now + max(1, control & 15))
    warp.at += 1


def row(kernel: Kernel) -> dict[str, object]:
    """The prediction for one kernel."""
    counted, launch = kernel.row(), kernel.launch
    groups = launch.computing // 4
    programs = int(counted["warps_per_sm"]) // launch.warps
    loop = kernel.code.listing.loop
    taken = cycles(loop, groups, programs)
    products = sum(busy for name, busy in map(unit, loop) if name == "tensor")
    operations = 4 * launch.block_m * launch.block_n * launch.head_dim * programs
    return {
        **{name: counted[name] for name in ("kernel", "head_dim", "schedule", "entropy", "block_m", "block_n")},
        "groups": groups * programs, "cycles": f"{taken:.0f}",
        "tensor_busy": f"{products * groups * programs / taken:.2f}",
        "tflops": f"{operations / taken * CLOCK * MULTIPROCESSORS['sm_90'] / 1e12:.0f}", "clock_ghz": CLOCK / 1e9,
        "compiler": kernel.compiler,
    }  # fmt: skip


def main() -> int:
    args = options(__doc__, HEAD_DIMS)
    rows = [row(kernel) for kernel in kernels(args)]
    for found in rows:
        print(*(f"{name} {found[name]}" for name in FIELDS[:-2]), sep=", ")
    if args.csv:
        write_rows(args.csv, rows, FIELDS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
