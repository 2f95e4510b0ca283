"""How fast is cross-attention with its head-averaged map, without and with the map's gradient? Shapes of SD and SDXL.

python -m benchmarks.kernels.maps --csv benchmarks/results/maps.csv
python -m benchmarks.kernels.maps --dtypes float16 bfloat16
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch

from benchmarks.kernels.measure import arguments, run_all
from entropy_attn.bench.cases import Case, cases
from entropy_attn.bench.workloads import Workload, workloads

NAMES = ("triton", "sdpa", "materialised", "attend-and-excite", "daam", "attention-map-diffusers", "attline")
MODELS = (("sd15", (512, 512)), ("sd15", (1024, 1024)), ("sdxl", (1024, 1024)))


def shapes() -> list[Workload]:
    """Cross-attention of each shape once, without the smallest level, which takes almost no time."""
    cross = [w for model, size in MODELS for w in workloads(model, size) if w.kind == "cross" and w.seqlen >= 256]
    return list({(w.heads, w.seqlen, w.head_dim): w for w in cross}.values())


def questions(dtypes: list[str]) -> Iterator[tuple[Case, tuple[str, ...]]]:
    types = [getattr(torch, name) for name in dtypes]
    for workload in shapes():
        for tasks, passes in ((("plain", "map"), ("forward",)), (("map",), ("both",))):
            for case in cases([workload], tasks, passes, types):
                yield case, NAMES


def main() -> int:
    args = arguments(__doc__).parse_args()
    return run_all(questions(args.dtypes), args)


if __name__ == "__main__":
    sys.exit(main())
