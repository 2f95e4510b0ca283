"""Which tiles the Gluon kernel can have: a search over what fits into registers and shared memory, without Triton.

One program fills a multiprocessor: its consumers take all registers that there are. So the search leaves the compiler
as many registers as the hardware can give, and fills shared memory with stages.
"""

from __future__ import annotations

from typing import NamedTuple

from ..common.head_dims import in_chunks
from ..common.targets import SHARED_MEMORY

ROWS = 64  # queries a group of warps: the height of one wgmma
WARPS_A_GROUP = 4  # that wgmma and setmaxnreg take together
THREADS = 32 * WARPS_A_GROUP
GROUPS = (2, 3)
# A tile's sides are powers of two in Gluon, and wgmma has at most 256 columns. With fewer keys, a block's fixed work is
# as much as that of its scores: 16.7 instructions a score with 32 keys, 8.5 with 128 (head dim 128, entropy).
BLOCKS_N = (64, 128, 256)
STAGES = (2, 3, 4)  # with one stage, no block would be on its way while another is read
REGISTER_FILE = 65_536  # of a multiprocessor; setmaxnreg deals registers out in eights
PRODUCER_REGISTERS = 24  # the fewest that setmaxnreg gives
# Registers for what does not grow with the tiles: statistics of two rows, addresses, the compiler's temporaries; and
# for what each further chunk of the head dim adds. Both are the least multiples of 8 with which nothing that fits
# spilled when it was compiled (tests/codegen, and the list in tests/kernels/test_pingpong_configs.py).
BESIDE_TILES = 32
FURTHER_CHUNK = 16
BARRIERS = 1024  # bytes of shared memory beside tiles: barriers, what is handed to the groups of warps, alignment


class Tiles(NamedTuple):
    """How many groups compute, over how many keys at a time, in rings of how many stages."""

    groups: int
    block_n: int
    stages: int

    @property
    def consumer_registers(self) -> int:
        """What setmaxnreg gives to each thread that computes: all but the producer's, in eights."""
        return _in_eights((REGISTER_FILE // THREADS - PRODUCER_REGISTERS) // self.groups)

    @property
    def max_registers(self) -> int:
        """What each thread has when the program starts."""
        return _in_eights(REGISTER_FILE // (THREADS * (self.groups + 1)))


def feasible_tiles(head_dim: int) -> list[Tiles]:
    """For each number of groups the widest block of keys that fits, in as many stages as fit; the widest block first.

    A wide block spends fewer instructions a score, and each further group uses a block of keys for more queries.
    """
    widest = []
    for groups in GROUPS:
        fitting = [Tiles(groups, n, stages) for n in BLOCKS_N for stages in STAGES]
        fitting = [tiles for tiles in fitting if not lacking(tiles, head_dim)]
        if fitting:
            widest.append(max(fitting, key=lambda tiles: (tiles.block_n, tiles.stages)))
    return sorted(widest, key=lambda tiles: (-tiles.block_n, -tiles.groups))


def lacking(tiles: Tiles, head_dim: int) -> list[str]:
    """Of what these tiles need more than there is; empty where they fit."""
    registers, shared = registers_needed(tiles, head_dim), shared_bytes(tiles, head_dim)
    reasons = []
    if registers > tiles.consumer_registers:
        reasons.append(f"{registers} registers a thread of {tiles.consumer_registers}")
    if shared > SHARED_MEMORY["sm_90"]:
        reasons.append(f"{shared} bytes of shared memory of {SHARED_MEMORY['sm_90']}")
    return reasons


def registers_needed(tiles: Tiles, head_dim: int) -> int:
    """Registers of a thread that computes.

    While the exponentials of one block run, there are its scores in float32, the probabilities of the block before in
    16 bits, which the product with values reads, and the output in float32.
    """
    scores = ROWS * tiles.block_n // THREADS
    probabilities = scores // 2
    held = in_chunks(head_dim)
    output = ROWS * held.width // THREADS
    return scores + probabilities + output + BESIDE_TILES + FURTHER_CHUNK * (len(held.chunks) - 1)


def shared_bytes(tiles: Tiles, head_dim: int) -> int:
    """Queries of all groups, whose place the output takes, and the two rings, in 16 bits."""
    return 2 * in_chunks(head_dim).width * (ROWS * tiles.groups + 2 * tiles.stages * tiles.block_n) + BARRIERS


def unsupported_tiles(
    tiles: Tiles, head_dim: int, *, block_m: int, num_warps: int, max_registers: int | None
) -> list[str]:
    """Why the kernel cannot be compiled with these tiles and options; empty where it can."""
    if tiles.groups not in GROUPS or block_m != tiles.groups * ROWS:
        return [f"block_m: expected {' or '.join(str(n * ROWS) for n in GROUPS)}, got {block_m}"]
    allowed = {
        "block_n": (tiles.block_n, BLOCKS_N),
        "num_stages": (tiles.stages, STAGES),
        "num_warps": (num_warps, (WARPS_A_GROUP,)),
        "max_registers": (max_registers, (tiles.max_registers,)),
    }
    reasons = [
        f"{name}: expected {' or '.join(map(str, values))}, got {given}"
        for name, (given, values) in allowed.items()
        if given not in values
    ]
    return reasons or [f"head_dim {head_dim} with {tiles} needs {lack}" for lack in lacking(tiles, head_dim)]


def _in_eights(count: int) -> int:
    return count // 8 * 8
