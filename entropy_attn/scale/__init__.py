"""Scale policies: which softmax scale an attention call gets, decided from its token counts.

A policy is any callable that takes a `CallInfo` and returns a float, a 0-d tensor, a tensor of one scale a head, or
None for the model's own scale. The ones here are frozen dataclasses: they print, compare and hash by
their settings. docs/scale.md says which is for what.
"""

from __future__ import annotations

from .adaptive import EntropyAdaptive
from .call import CallInfo, Kind, Policy, Scale, needs_train_tokens, resolve_scale
from .combine import Layers, Product, Steps
from .plain import Constant, Fixed
from .ratio import LogN, LogNoRoot, Power, TokenRatio, YaRN
from .sizes import token_grid, training_tokens

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
