"""In which range of logits does a temperature act, and how exactly is the response measured?

results/regimes.csv: Gaussian logits of standard deviation std_ratio * sqrt(2 ln T), in float64: their entropy, the
response -dH / d ln(scale), and by how much `LogN` moves the entropy beside the drift from T to 4 T. The band of the
regimes (entropy_attn/profiling/regimes.py) comes from it: where the response is at least half of its largest value.

results/response.csv: `entropy_response` and `logit_variance` against float64, by the step between the two scales and by
dtype. The step in entropy_attn/ops/response.py comes from it.

    python -m benchmarks.scale.regimes
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import RESULTS, new_parser, write_rows
from entropy_attn.ops.response import entropy_response, logit_variance

TRAIN_TOKENS = (16, 64, 256, 1024, 4096)
RATIOS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0, 6.0)
STEPS = (0.003, 0.01, 0.02, 0.05, 0.1)
STDS = (0.1, 0.45, 1.8, 4.0, 14.0, 60.0)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ROWS, HEAD_DIM = 256, 32


def gaussian(tokens: int, std: float, seed: int = 0) -> tuple[float, float]:
    """Mean entropy and response of rows of Gaussian logits, float64."""
    logits = torch.randn(ROWS, tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * std
    entropy, response = exact(logits)
    return entropy.mean().item(), response.mean().item()


def exact(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy, and the variance of the logits under their softmax, of every row."""
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    mean = (p * logits).sum(-1, keepdim=True)
    return -(p * log_p).sum(-1), (p * (logits - mean).square()).sum(-1)


def band() -> list[dict[str, Any]]:
    """The rows of regimes.csv."""
    table = []
    for trained in TRAIN_TOKENS:
        unit, factor = math.sqrt(2 * math.log(trained)), math.sqrt(math.log(4 * trained) / math.log(trained))
        found = {ratio: gaussian(trained, ratio * unit) for ratio in RATIOS}
        largest = max(response for _, response in found.values())
        for ratio, (entropy, response) in found.items():
            large, large_response = gaussian(4 * trained, ratio * unit)
            scaled, _ = gaussian(4 * trained, ratio * unit * factor)
            drift = large - entropy
            table.append(
                {
                    "train_tokens": trained,
                    "std_ratio": ratio,
                    "entropy": entropy,
                    "response": response,
                    "response_over_largest": response / largest,
                    "drift": drift,
                    "logn_moves": large - scaled,
                    "logn_predicted": large_response * math.log(factor),
                }
            )
    return table


def operands(tokens: int, std: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value; each row of logits has about this standard deviation."""
    g = torch.Generator().manual_seed(0)
    query = F.normalize(torch.randn(1, 2, 64, HEAD_DIM, generator=g), dim=-1) * std * HEAD_DIM**0.5
    key = torch.randn(1, 2, tokens, HEAD_DIM, generator=g)
    return query.to(dtype), key.to(dtype), torch.zeros(1, 2, tokens, 16, dtype=dtype)


def errors() -> list[dict[str, Any]]:
    """The rows of response.csv: errors relative to the mean of the exact response."""
    table = []
    for dtype in DTYPES:
        for std in STDS:
            for tokens in (64, 1024):
                query, key, value = operands(tokens, std, dtype)
                logits = query.double() @ key.double().mT / HEAD_DIM**0.5
                _, wanted = exact(logits)
                spread = (logit_variance(query, key).double().sqrt() / logits.std(-1, correction=0) - 1).abs().max()
                for step in STEPS:
                    off = entropy_response(query, key, value, step=step).double() - wanted
                    table.append(
                        {
                            "dtype": str(dtype).removeprefix("torch."),
                            "logit_std": std,
                            "tokens": tokens,
                            "step": step,
                            "response": wanted.mean().item(),
                            "error_of_mean": (off.mean().abs() / wanted.mean()).item(),
                            "error_of_row": (off.abs().max() / wanted.mean()).item(),
                            "error_of_logit_std": spread.item(),
                        }
                    )
    return table


def main() -> None:
    new_parser(__doc__).parse_args()
    for name, table in (("regimes.csv", band()), ("response.csv", errors())):
        short = [{key: f"{v:.4g}" if isinstance(v, float) else v for key, v in row.items()} for row in table]
        write_rows(RESULTS / name, short)
        print(RESULTS / name)


if __name__ == "__main__":
    main()
