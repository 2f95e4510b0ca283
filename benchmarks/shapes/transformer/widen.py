"""Weights of a transformer with heads of 32 as the start of one with heads of 64, which has more rotary frequencies.

Two heads become one: their dims stay pairs of the same rotary axis, each at about the frequency it had. The words, the
feed-forwards and the modulation stay as they are, so that training goes on from there instead of from noise.

    python -m benchmarks.shapes.transformer.widen --work runs/heads-of-32 --out runs/heads-of-64
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from benchmarks.common import new_parser
from benchmarks.shapes.transformer.files import save
from benchmarks.shapes.transformer.model import AXES

NARROW, WIDE = 32, 64


def frequencies(dims: int) -> list[float]:
    """Radians a token of the pairs of an axis with `dims` dims, as `Lumina2RotaryPosEmbed` has them."""
    return [10000 ** (-2 * i / dims) for i in range(dims // 2)]


def pair_order() -> list[int]:
    """For each rotary pair of a wide head, the pair of the two narrow ones (0 to 31) that it takes.

    An axis takes its pairs in the order of their frequencies. The caption's axis gets no wider, and leaves those of its
    pairs that it does not need, the slowest, to rows and columns.
    """
    per_head, first = NARROW // 2, 0
    of_axis: list[list[int]] = []
    for dims in AXES[NARROW]:
        speed = frequencies(dims)
        both = [(speed[i], head * per_head + first + i) for i in range(dims // 2) for head in (0, 1)]
        of_axis.append([pair for _, pair in sorted(both, key=lambda item: -item[0])])
        first += dims // 2
    wanted = [dims // 2 for dims in AXES[WIDE]]
    spare = [pair for pairs, count in zip(of_axis, wanted, strict=True) for pair in pairs[count:]]
    order: list[int] = []
    for pairs, count in zip(of_axis, wanted, strict=True):
        kept = pairs[:count]
        order += kept + [spare.pop() for _ in range(count - len(kept))]
    return order


def widened(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of the wide transformer; only rows of the query and key projections move, and their norms grow.

    Args:
        weights: state dict of `transformer(width, layers)` with heads of 32 and an even number of heads.

    Raises:
        ValueError: the heads are not of 32, or their number is odd.
    """
    order = torch.tensor(pair_order())
    dims = (2 * order[:, None] + torch.arange(2)).flatten()  # of two narrow heads, (64,)
    out = {}
    for name, value in weights.items():
        if name.endswith(("attn.norm_q.weight", "attn.norm_k.weight")):
            if value.shape != (NARROW,):
                raise ValueError(f"{name}: expected shape ({NARROW},), got {tuple(value.shape)}")
            value = value[dims % NARROW]
        elif name.endswith(("attn.to_q.weight", "attn.to_k.weight")):
            if value.shape[0] % WIDE:
                raise ValueError(f"{name}: expected a multiple of {WIDE} rows, got {value.shape[0]}")
            value = value.unflatten(0, (-1, WIDE))[:, dims].flatten(0, 1)
        out[name] = value.clone()
    return out


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of train.py with heads of 32")
    parser.add_argument("--out", type=Path, required=True, help="folder to continue in, with --head-dim 64")
    parser.add_argument("--step", type=int, default=0, help="the step to continue at (default %(default)s)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    averaged = torch.load(args.work / "transformer.pt", map_location="cpu")["averaged"]
    start = widened(averaged)
    save(args.out / "transformer.pt", {"net": start, "averaged": start, "step": args.step, "optimizers": None})
    for file in (args.work / "autoencoder.pt", *sorted(args.work.glob("latents-*.pt"))):
        shutil.copy2(file, args.out / file.name)
    print(f"{args.out}: continues at step {args.step} with heads of {WIDE}")


if __name__ == "__main__":
    main()
