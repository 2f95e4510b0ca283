"""Attention calls of diffusion models, for `kernels benchmark`: the fused kernels against torch.

A line of its table is one call. `Ref(ms)` is the time of what a user of torch would run for the same result: torch's
attention for the output, and the matrix of all probabilities for the entropy and the map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from kernels.benchmark import Benchmark
from torch import Tensor


class Calls:
    """The calls of one shape. The keys of a map are the text: all keys of cross-attention, the first ones of joint."""

    seed = 0
    dtype = torch.float16
    batch: int
    heads: int
    tokens: int
    head_dim: int
    text_tokens = 77
    joint = False

    def setup(self) -> None:
        shape = (self.batch, self.heads, self.tokens, self.head_dim)
        self.query, self.key, self.value = (torch.randn(shape, device=self.device, dtype=self.dtype) for _ in range(3))
        last = self.tokens if self.joint else self.text_tokens
        self.text_key, self.text_value = (t[:, :, :last].contiguous() for t in (self.key, self.value))

    def benchmark_output(self) -> None:
        self.out = self.kernel.attention(self.query, self.key, self.value, impl="triton").out

    def verify_output(self) -> Tensor:
        return F.scaled_dot_product_attention(self.query, self.key, self.value)

    def benchmark_entropy(self) -> None:
        result = self.kernel.attention(self.query, self.key, self.value, return_entropy=True, impl="triton")
        self.out = result.entropy

    def verify_entropy(self) -> Tensor:
        log_p = _logits(self.query, self.key).log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)

    def benchmark_map(self) -> None:
        query, key, value = self.query, self.text_key, self.text_value
        self.out = self.kernel.attention(query, key, value, map_keys=(0, self.text_tokens), impl="triton").map

    def verify_map(self) -> Tensor:
        return _logits(self.query, self.text_key).softmax(-1)[..., : self.text_tokens].mean(1)


def _logits(query: Tensor, key: Tensor) -> Tensor:
    return (query @ key.mT).float() * query.shape[-1] ** -0.5


class StableDiffusion15(Calls, Benchmark):
    """The first level of the UNet at 512 px."""

    batch, heads, tokens, head_dim = 2, 8, 4096, 40


class StableDiffusionXL(Calls, Benchmark):
    """The first level with attention at 1024 px."""

    batch, heads, tokens, head_dim = 2, 10, 4096, 64


class StableDiffusion3(Calls, Benchmark):
    """Joint attention at 1024 px."""

    batch, heads, tokens, head_dim = 2, 24, 4429, 64
    text_tokens, joint = 333, True


class Flux(Calls, Benchmark):
    """Joint attention at 1024 px."""

    batch, heads, tokens, head_dim = 1, 24, 4608, 128
    text_tokens, joint = 512, True
