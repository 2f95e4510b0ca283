"""Everything that routing could leave behind in a model."""

from __future__ import annotations

import torch


def footprint(model: torch.nn.Module) -> list:
    """Everything that routing could leave behind."""
    return [
        (name, type(module), set(module.__dict__), dict(module._forward_hooks))
        for name, module in model.named_modules()
    ]
