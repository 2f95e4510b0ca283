"""How well do the approximations of the two papers describe what attention really does? Computed with `ea.attention`.

Jin et al. (NeurIPS 2023), Eq. 5: entropy = ln N - sigma**2 / 2 for Gaussian logits. Kim et al. (arXiv 2411.15236),
Propositions 1 and 2: how similar the cross-attention maps of two tokens are, and how similar a sink makes two outputs.
docs/theory.md shows the plots; tests/benchmarks/test_theory.py asserts what they show.

    python -m benchmarks.scale.theory                    # docs/images/theory-*.png and benchmarks/results/theory.csv
    python -m benchmarks.scale.theory --csv theory.csv --images plots
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import entropy_attn as ea
from benchmarks.common import IMAGES, RESULTS, new_parser, write_rows
from entropy_attn.plots.style import BLUE, DPI, GREEN, GREY, PINK, VERMILION, new_figure, plain_axis

LENGTHS = (16, 64, 256, 1024, 4096)
SIGMAS = (0.5, 1.0, 2.0, 3.0)
TRAIN_TOKENS = 256
HEAD_DIM = 64
HEADS = 8
QUERIES = 128


def gaussian_entropies(seqlen: int, sigma: float, *, scale: float | None = None, seed: int = 0, impl: str = "auto"):
    """Row entropies (1, heads, queries), in nats, for `seqlen` Gaussian keys.

    The norm of the queries is such that the logits have standard deviation `sigma` under the default scale 1/sqrt(d).
    """
    g = torch.Generator().manual_seed(seed)
    query = F.normalize(torch.randn(1, HEADS, QUERIES, HEAD_DIM, generator=g), dim=-1) * sigma * HEAD_DIM**0.5
    key = torch.randn(1, HEADS, seqlen, HEAD_DIM, generator=g)
    value = torch.zeros(1, HEADS, seqlen, 16)
    return ea.attention(query, key, value, scale=scale, return_entropy=True, impl=impl).entropy


def predicted_entropy(seqlen: int, sigma: float) -> float:
    """Jin et al., Eq. 5."""
    return math.log(seqlen) - sigma**2 / 2


def paper_scale(seqlen: int, train_tokens: int = TRAIN_TOKENS) -> float:
    """The scale of the policy `LogN` for a self-attention layer with this many tokens."""
    info = ea.CallInfo(layer="", kind="self", seqlen_q=seqlen, seqlen_k=seqlen, num_heads=HEADS, head_dim=HEAD_DIM,
                       train_tokens=train_tokens, text_tokens=0, step=0)  # fmt: skip
    return ea.scale.LogN()(info)


def map_similarity(
    sink: float, *, queries: int = 1 << 16, tokens: int = 5, head_dim: int = 16, seed: int = 0, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Cosines of the maps of two tokens, measured and predicted: two tensors (pairs,).

    Proposition 1 assumes Gaussian queries, here with covariance W**2, and a softmax denominator that is the same for
    all of them. The latter becomes true as `sink` grows: the logit of one more key, equal for all queries.
    """
    g = torch.Generator().manual_seed(seed)
    w = torch.linspace(0.5, 1.5, head_dim)
    w[::2] = 0.0  # with few active dimensions, the exponential has small tails, and the sampling error is small
    query = torch.randn(1, 1, queries // 2, head_dim, generator=g) * w
    query = torch.cat([query, -query], dim=2)  # makes every odd moment zero, as that of the Gaussian
    key = torch.randn(1, 1, tokens + 1, head_dim, generator=g) * 0.3
    key[:, :, 0] = 0.0
    bias = torch.zeros(1, 1, 1, tokens + 1)
    bias[..., 0] = sink
    value = torch.zeros(1, 1, tokens + 1, 16)
    maps = ea.attention(query, key, value, attn_mask=bias, scale=1.0, map_keys=(1, tokens + 1), impl=impl).map[0]
    columns = F.normalize(maps.double(), dim=0)  # [queries, tokens]
    delta = (key[0, 0, 1:, None] - key[0, 0, None, 1:]).double() * w
    predicted = torch.exp(-0.5 * delta.square().sum(-1))
    i, j = torch.triu_indices(tokens, tokens, 1)
    return (columns.T @ columns)[i, j], predicted[i, j]


def sink_similarity(sink: float, *, tokens: int = 20, seed: int = 0, impl: str = "auto") -> tuple[float, float]:
    """(largest attention weight outside the sink, smallest cosine of two outputs) of self-attention with a sink.

    Proposition 2: if every token attends to the sink except for a part epsilon, the cosines of the outputs tend to 1.
    """
    g = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(1, 1, tokens, HEAD_DIM, generator=g) for _ in range(3))
    bias = torch.zeros(1, 1, 1, tokens)
    bias[..., 0] = sink
    result = ea.attention(query, key, value, attn_mask=bias, map_keys=(0, 1), impl=impl)
    outputs = F.normalize(result.out[0, 0].double(), dim=-1)
    return (1 - result.map).max().item(), (outputs @ outputs.T).min().item()


def rows() -> list[dict[str, object]]:
    """All numbers of the figures."""
    table: list[dict[str, object]] = []

    def add(what: str, x: float, parameter: float, measured: float, predicted: float) -> None:
        table.append({"what": what, "x": x, "parameter": parameter, "measured": measured, "predicted": predicted})

    for sigma in SIGMAS:
        for seqlen in LENGTHS:
            measured = gaussian_entropies(seqlen, sigma).mean().item()
            add("entropy, scale 1/sqrt(d)", seqlen, sigma, measured, predicted_entropy(seqlen, sigma))
            scale = paper_scale(seqlen)
            rescaled = sigma * scale * HEAD_DIM**0.5
            measured = gaussian_entropies(seqlen, sigma, scale=scale).mean().item()
            add("entropy, scale LogN", seqlen, sigma, measured, predicted_entropy(seqlen, rescaled))
    for sink in (0.0, 2.0, 4.0, 6.0, 8.0):
        for measured, predicted in zip(*map_similarity(sink), strict=True):
            add("cosine of maps", sink, 0.0, measured.item(), predicted.item())
    for sink in (0.0, 2.0, 4.0, 6.0, 8.0, 10.0):
        epsilon, cosine = sink_similarity(sink)
        add("cosine of outputs", epsilon, sink, cosine, 1.0)
    return table


def draw(table: list[dict[str, object]], folder: Path) -> list[Path]:
    """Write theory-entropy.png and theory-maps.png."""

    def series(what: str, parameter: float | None = None) -> tuple[list, list, list]:
        chosen = [r for r in table if r["what"] == what and parameter in (None, r["parameter"])]
        return [r["x"] for r in chosen], [r["measured"] for r in chosen], [r["predicted"] for r in chosen]

    colors = [BLUE, GREEN, VERMILION, PINK]
    entropies, axes = _two_panels(sharey=True)
    for axis, what in zip(axes, ("entropy, scale 1/sqrt(d)", "entropy, scale LogN"), strict=True):
        for sigma, color in zip(SIGMAS, colors, strict=True):
            n, measured, predicted = series(what, sigma)
            axis.plot(n, predicted, "--", color=color, lw=1)
            axis.plot(n, measured, "o", color=color, label=f"σ = {sigma:g}")
        axis.axvline(TRAIN_TOKENS, color=GREY, lw=1, ls=":")
        axis.set(xscale="log", xlabel="N, keys", title=what.replace("1/sqrt(d)", "1/√d"), ylim=(-0.5, 9))
        axis.set_xticks(LENGTHS, [str(n) for n in LENGTHS], minor=False)
        axis.minorticks_off()
    axes[0].set_ylabel("mean entropy [nats]")
    axes[0].legend(title="measured; dashed: ln N − σ²/2", loc="upper left", frameon=False)
    axes[1].annotate(f"T = {TRAIN_TOKENS}", (TRAIN_TOKENS, 0), xytext=(6, 2), textcoords="offset points", color=GREY)

    maps, axes = _two_panels()
    for sink, color in zip((0.0, 2.0, 4.0, 8.0), colors, strict=True):
        chosen = [r for r in table if r["what"] == "cosine of maps" and r["x"] == sink]
        axes[0].plot([r["predicted"] for r in chosen], [r["measured"] for r in chosen], "o", color=color,
                     label=f"sink {sink:g}")  # fmt: skip
    limits = [min(r["predicted"] for r in table if r["what"] == "cosine of maps") - 0.05, 1.0]
    axes[0].plot(limits, limits, "--", color=GREY, lw=1)
    axes[0].set(xlabel="exp(−½ Δkᵀ W² Δk)", ylabel="cosine of two tokens' maps", title="Proposition 1")
    axes[0].legend(title="logit of the sink", frameon=False)
    epsilon, cosine, _ = series("cosine of outputs")
    axes[1].loglog(epsilon, [1 - c for c in cosine], "o-", color=colors[0], label="measured")
    axes[1].loglog(epsilon[-3:], [(1 - cosine[-1]) * (e / epsilon[-1]) ** 2 for e in epsilon[-3:]], "--", color=GREY,
                   label="ε²")  # fmt: skip
    axes[1].set(
        xlabel="ε, largest weight outside the sink", ylabel="1 − smallest cosine of outputs", title="Proposition 2"
    )
    axes[1].legend(frameon=False)

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "theory-entropy.png", folder / "theory-maps.png"]
    for figure, path in zip((entropies, maps), paths, strict=True):
        figure.savefig(path, dpi=DPI)
    return paths


def _two_panels(**shared: bool) -> tuple:
    figure = new_figure(11, 4.2, "")
    axes = figure.subplots(1, 2, **shared)
    for axis in axes:
        plain_axis(axis)
    return figure, axes


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--csv", type=Path, default=RESULTS / "theory.csv", help="write the numbers to this file")
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder of the figures")
    args = parser.parse_args()
    table = rows()
    args.csv.parent.mkdir(parents=True, exist_ok=True)
    short = [{name: f"{v:.6g}" if isinstance(v, float) else v for name, v in row.items()} for row in table]
    write_rows(args.csv, short)
    for path in [args.csv, *draw(table, args.images)]:
        print(path)


if __name__ == "__main__":
    main()
