"""One attention call: its output, and how sharp it is.

The entropy of a row says over how many keys a query spreads: exp(entropy) keys with equal weight would have the same
entropy. You see that it falls as the scale rises, that all of it comes from one call, and that a gradient flows through
the entropy.

    python examples/attention_call.py --tokens 4096 --device cuda
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import torch

import entropy_attn as ea


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024, help="number of queries and of keys (default: 1024)")
    parser.add_argument("--head-dim", type=int, default=40, help="width of a head (default: 40)")
    parser.add_argument("--device", default="cpu", help="such as cuda (default: cpu)")
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 8, args.tokens, args.head_dim, device=args.device) for _ in range(3))
    default = 1 / math.sqrt(args.head_dim)
    print(f"{args.tokens} keys: uniform attention has entropy ln {args.tokens} = {math.log(args.tokens):.2f} nats")
    print("scale / default   entropy, nats   keys with equal weight")
    for factor in (0.5, 1.0, 1.2, 2.0, 4.0):
        entropy = ea.attention(query, key, value, scale=factor * default, return_entropy=True).entropy.mean()
        print(f"{factor:15.1f} {entropy:15.2f} {entropy.exp():24.0f}")

    result = ea.attention(query, key, value, return_lse=True, map_keys=(0, 77))
    print(f"out {tuple(result.out.shape)}, log-sum-exp {tuple(result.lse.shape)}")
    print(f"map of the first 77 keys, mean over heads: {tuple(result.map.shape)}")

    query.requires_grad_()
    ea.attention(query, key, value, return_entropy=True).entropy.mean().backward()
    print(f"gradient of the mean entropy in the query: {tuple(query.grad.shape)}, norm {query.grad.norm():.2e}")


if __name__ == "__main__":
    main()
