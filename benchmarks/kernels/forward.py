"""How fast is the forward pass on this machine's GPU, compared with torch's attention?

python -m benchmarks.kernels.forward --csv benchmarks/results/forward.csv
python -m benchmarks.kernels.forward --head-dims 64 --lengths 1024 4096
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch

from benchmarks.kernels.measure import arguments, run_all
from entropy_attn.bench.cases import Case, cases
from entropy_attn.bench.workloads import SWEEP_TOKENS, sweep

TOKENS = SWEEP_TOKENS
NAMES = (
    "triton", "sdpa-flash", "sdpa-cudnn", "sdpa-efficient", "sdpa-fa3", "sdpa-fa4", "sdpa-cudnn-python",
    "flash-attn-3", "flash-attn-4", "tlx",
    # these compute the entropy
    "vk-flash", "vk-cudnn", "vk-flash-attn-4", "cat-cudnn", "cat-efficient", "cat-flash-attn-4", "materialised",
)  # fmt: skip


def questions(dtypes: list[str], head_dims: list[int], lengths: list[int]) -> Iterator[tuple[Case, tuple[str, ...]]]:
    shapes = sweep(head_dims, lengths, tokens=TOKENS)
    for case in cases(shapes, ("plain", "entropy"), ("forward",), [getattr(torch, name) for name in dtypes]):
        yield case, NAMES


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--head-dims", type=int, nargs="+", default=[40, 64, 80, 128, 160], help="default %(default)s")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[256, 1024, 4096, 16384], help="tokens (default %(default)s)"
    )
    args = parser.parse_args()
    return run_all(questions(args.dtypes, args.head_dims, args.lengths), args)


if __name__ == "__main__":
    sys.exit(main())
