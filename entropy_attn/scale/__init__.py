"""Scale policies: the softmax scale of each attention call, computed from its token counts or from a recorded profile.

A policy is any callable that takes a `CallInfo` and returns a float, a 0-d tensor, a tensor with one scale per head, or
for each sample and head, `KeyGroups` for factors and biases by key, or None for the model's default scale. The policies
here are frozen dataclasses: they print, compare and hash by their settings. docs/scale.md compares them.
"""

from __future__ import annotations

from entropy_attn.scale.adaptive import EntropyAdaptive
from entropy_attn.scale.call import CallInfo, Kind, Policy, Scale, needs_train_tokens, resolve_scale
from entropy_attn.scale.combine import Layers, Product, Steps
from entropy_attn.scale.constant import Constant, Fixed
from entropy_attn.scale.dype import DyPE
from entropy_attn.scale.key_groups import KeyGroups
from entropy_attn.scale.layer_factors import LayerFactors
from entropy_attn.scale.prompt_policies import PromptWeights, Regions
from entropy_attn.scale.taca import TACA
from entropy_attn.scale.target_entropy import TargetEntropy
from entropy_attn.scale.token_grid import token_grid, training_tokens
from entropy_attn.scale.token_ratio import LogN, LogNoRoot, Power, TokenRatio, YaRN
from entropy_attn.scale.when import OfBranch, Schedule

# Names of the policies on the command line and in `ea.profile(scales=...)`. A policy is written as its name and
# options, such as "logn:strength=0.5:clamp=..1.2"; each also takes steps=START..STOP, sigma=HIGH..LOW,
# timestep=HIGH..LOW, progress=START..STOP, layers=REGEX and branch=NAME. A path that ends in .json is short for
# factors:factors=PATH. See parsing.py.
POLICIES: dict[str, type] = {
    "off": Fixed,
    "logn": LogN,
    "lognoroot": LogNoRoot,
    "power": Power,
    "yarn": YaRN,
    "dype": DyPE,
    "constant": Constant,
    "adaptive": EntropyAdaptive,
    "factors": LayerFactors,
    "taca": TACA,
    "target": TargetEntropy,
}

__all__ = [
    "POLICIES",
    "TACA",
    "CallInfo",
    "Constant",
    "DyPE",
    "EntropyAdaptive",
    "Fixed",
    "KeyGroups",
    "Kind",
    "LayerFactors",
    "Layers",
    "LogN",
    "LogNoRoot",
    "OfBranch",
    "Policy",
    "Power",
    "Product",
    "PromptWeights",
    "Regions",
    "Scale",
    "Schedule",
    "Steps",
    "TargetEntropy",
    "TokenRatio",
    "YaRN",
    "needs_train_tokens",
    "resolve_scale",
    "token_grid",
    "training_tokens",
]
