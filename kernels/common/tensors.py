"""What kernels take as one argument: a tensor with its strides, a scale, the lengths of a call, a head dim in chunks.

Plain Python, readable without Triton. A None in place of a pointer is known to the compiler, which leaves out all that
would read or write there.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Strided(NamedTuple):
    """A tensor of four axes: the pointer to its first element, and strides in elements.

    Rows and columns are tokens and channels; of a mask or a map, queries and keys. A stride of 0 broadcasts.
    """

    ptr: Any
    stride_b: Any = 0
    stride_h: Any = 0
    stride_row: Any = 0
    stride_col: Any = 0


class Matrix(NamedTuple):
    """One head of a `Strided`, made in the kernel: the pointer to the head's first element."""

    ptr: Any
    stride_row: Any
    stride_col: Any


class Described(NamedTuple):
    """One head behind tensor descriptors over (batch, head, row, column), one for each chunk of the head dim."""

    chunks: Any
    off_b: Any
    off_h: Any


class Scale(NamedTuple):
    """The scale of the scores: a number for each head, or sample and head, in memory, or the same as an argument."""

    ptr: Any  # None where `factor` has it
    factor: Any  # brings products to the unit of the scores
    stride: Any  # of heads
    stride_b: Any  # None where samples share it


class KeyTables(NamedTuple):
    """A factor on the products of each key, and a bias on its scores: for each head a row of numbers in memory.

    They are for the queries `start` to `stop` alone, or for all where these are None. A stride of 0 broadcasts.
    """

    scale: Any  # a pointer to (B, H, Nk), or None; in the heads' products with every query
    scale_b: Any = 0
    scale_h: Any = 0
    scale_key: Any = 0
    bias: Any = None  # the same; in nats, and -inf excludes a key
    bias_b: Any = 0
    bias_h: Any = 0
    bias_key: Any = 0
    start: Any = None
    stop: Any = None


class KeyOffsets(NamedTuple):
    """Where the rows of one head begin in `KeyTables`, in elements. Pointers stay there, as one of them may be None."""

    scale: Any
    bias: Any


class RowOutputs(NamedTuple):
    """Where more numbers of each row go, (B, H, Nq): pointers, or None for those that are not wanted."""

    variance: Any = None
    max: Any = None
    mass: Any = None
    mass_start: Any = 0  # the keys whose probability is the mass
    mass_stop: Any = 0


class Lengths(NamedTuple):
    """The sizes of a call."""

    num_heads: Any
    group: Any  # query heads that share a key head
    seqlen_q: Any
    seqlen_k: Any


class MapParts(NamedTuple):
    """The head-averaged map that is written, in parts of the heads whose sum is the map. Columns have stride 1."""

    ptr: Any
    stride_part: Any
    stride_b: Any
    stride_row: Any
    start: Any  # the key of its first column
    columns: Any
    heads_per_program: Any
    head_weight: Any  # 1 / heads


class MapGradient(NamedTuple):
    """The gradient of the head-averaged map, of the keys `start` to `stop`."""

    ptr: Any
    stride_b: Any = 0
    stride_row: Any = 0
    stride_col: Any = 0
    start: Any = 0
    stop: Any = 0


class RowValues(NamedTuple):
    """One number for each row, in the backward pass: pointers to (B, H, Nq), or what was loaded there, [BLOCK_M]."""

    lse: Any  # in the unit of the scores
    log2_l: Any  # beside an added mask lse is in two numbers, of which this is the second, in base 2; else None
    delta: Any  # what dS / P has for all keys of the row
    g: Any  # the entropy's gradient times ln 2, or None
    bound: Any  # in float16: the largest |dS|, of each program or of each key head; else None


class Chunk(NamedTuple):
    """Columns `start` to `start + width` of a head dim; the width is a power of two, as products want it."""

    start: int
    width: int


class HeadDim(NamedTuple):
    """A head dim as the kernels hold it: chunks whose widths add up to at least `size`."""

    size: int
    chunks: tuple[Chunk, ...]

    @property
    def width(self) -> int:
        """Columns that are held, those beyond the head dim too."""
        return sum(chunk.width for chunk in self.chunks)
