"""How fast are forward and backward together, with and without a gradient of the entropy, compared with torch?

python -m benchmarks.kernels.backward --csv benchmarks/results/backward.csv
python -m benchmarks.kernels.backward --head-dims 64 --lengths 1024 4096
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch

from benchmarks.kernels.measure import arguments, run_all
from entropy_attn.bench.cases import Case, cases
from entropy_attn.bench.workloads import sweep

TOKENS = 16_384  # batch x length
NAMES = (
    "triton", "sdpa-flash", "sdpa-cudnn", "sdpa-efficient", "sdpa-fa3", "sdpa-fa4", "sdpa-cudnn-python",
    "flash-attn-3", "flash-attn-4", "tlx",
    "vk-flash-attn-4", "cat-flash-attn-4", "materialised",  # these compute the entropy
)  # fmt: skip
FLEX_LENGTH = 4096  # FlexAttention compiles for each shape: one length is enough for a comparison


def questions(dtypes: list[str], head_dims: list[int], lengths: list[int]) -> Iterator[tuple[Case, tuple[str, ...]]]:
    shapes = sweep(head_dims, lengths, tokens=TOKENS)
    for case in cases(shapes, ("plain", "entropy"), ("both",), [getattr(torch, name) for name in dtypes]):
        yield case, (*NAMES, "flex", "vk-flex", "cat-flex") if case.workload.seqlen == FLEX_LENGTH else NAMES


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--head-dims", type=int, nargs="+", default=[40, 64, 128, 160], help="default %(default)s")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[1024, 4096, 16384], help="tokens (default %(default)s)"
    )
    args = parser.parse_args()
    return run_all(questions(args.dtypes, args.head_dims, args.lengths), args)


if __name__ == "__main__":
    sys.exit(main())
