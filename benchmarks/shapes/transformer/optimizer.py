"""Muon for the matrices of the blocks, AdamW for the rest.

K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024, https://kellerjordan.github.io/posts/muon/.
torch's Muon computes in bfloat16, which is slow on a CPU without instructions for it; this one computes in float32, and
orthogonalizes all matrices of the same shape at once.
"""

from __future__ import annotations

from collections import defaultdict

import torch

# The quintic of the source: five rounds bring every singular value into about 0.7..1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5


def orthogonalized(matrices: torch.Tensor) -> torch.Tensor:
    """Approximately the nearest (semi-)orthogonal matrices of a stack (K, rows, columns)."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(a * x, torch.baddbmm(b * gram, gram, gram, alpha=c), x)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """SGD with orthogonalized momentum. `lr` is the spectral norm of the change of a square matrix."""

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        if closure is not None:
            raise ValueError(f"closure: expected None, got {closure!r}")
        for group in self.param_groups:
            shapes = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for (rows, columns), members in shapes.items():
                directions = []
                for parameter in members:
                    state = self.state[parameter]
                    moving = state.setdefault("momentum", torch.zeros_like(parameter))
                    moving.lerp_(parameter.grad, 1 - group["momentum"])
                    directions.append(parameter.grad.lerp(moving, group["momentum"]))
                size = group["lr"] * max(1.0, rows / columns) ** 0.5
                for parameter, direction in zip(members, orthogonalized(torch.stack(directions)), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-size)


def split(model) -> tuple[list, list]:
    """(attention and feed-forward matrices of the blocks, all other parameters)."""
    hidden, rest = [], []
    for name, parameter in model.named_parameters():
        inside = ".attn.to_" in name or ".feed_forward." in name
        (hidden if inside and parameter.ndim == 2 else rest).append(parameter)
    return hidden, rest
