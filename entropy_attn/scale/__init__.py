"""Scale policies: which softmax scale an attention call gets, decided from its token counts.

A policy is any callable that takes a `CallInfo` and returns a float, a 0-d tensor, a tensor of one scale a head, or
None for the model's own scale. The ones here are frozen dataclasses: they print, compare and hash by
their settings. docs/scale.md says which is for what.
"""

from __future__ import annotations

from entropy_attn.scale.adaptive import EntropyAdaptive
from entropy_attn.scale.call import CallInfo, Kind, Policy, Scale, needs_train_tokens, resolve_scale
from entropy_attn.scale.combine import Layers, Product, Steps
from entropy_attn.scale.constant import Constant, Fixed
from entropy_attn.scale.token_grid import token_grid, training_tokens
from entropy_attn.scale.token_ratio import LogN, LogNoRoot, Power, TokenRatio, YaRN

# What the command line calls them.
POLICIES: dict[str, type] = {
    "off": Fixed,
    "logn": LogN,
    "lognoroot": LogNoRoot,
    "power": Power,
    "yarn": YaRN,
    "constant": Constant,
    "adaptive": EntropyAdaptive,
}

__all__ = [
    "POLICIES",
    "CallInfo",
    "Constant",
    "EntropyAdaptive",
    "Fixed",
    "Kind",
    "Layers",
    "LogN",
    "LogNoRoot",
    "Policy",
    "Power",
    "Product",
    "Scale",
    "Steps",
    "TokenRatio",
    "YaRN",
    "needs_train_tokens",
    "resolve_scale",
    "token_grid",
    "training_tokens",
]
