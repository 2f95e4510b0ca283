"""A policy that goes by what was measured: sharper for the heads whose attention is sharp."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from entropy_attn.scale.call import CallInfo
from entropy_attn.scale.head_entropies import HeadEntropies, Selection, read_entropies
from entropy_attn.validation import require_bool, require_finite, require_int, require_one_of


@dataclass(frozen=True)
class EntropyAdaptive:
    """Per head, from a recorded profile: the lower a head's entropy, the higher its scale.

    (lambda_min + (lambda_max - lambda_min) * z**gamma) / sqrt(head_dim), with z = (h_max - H) / (h_max - h_min) of
    the head's mean entropy H in nats, kept within 0 and 1. Heads that look nearby are sharpened for detail, those that
    look everywhere are left alone for structure. From Zhao et al., "UltraImage", arXiv 2512.04504; the defaults are
    what github.com/thu-ml/DiT-Extrapolation sets for Qwen-Image, where it has h_min=0.04 and h_max=6.25, from one
    denoising step. For Flux it sets lambda_min=1.1, h_min=0.44, h_max=6.0, and the scale of `LogN` besides (see
    `Product`). Its entropies are those of blocks of 128 queries, averaged; here they are those of all queries, and the
    picture's size is no part of the formula: profile at the size that is generated.

    profile: an `EntropyRecorder`, its DataFrame, the path of a .csv or .json that one wrote, or the folder that
        `ea.profile` or `entropy-attn profile` wrote. Layers are matched by name, and heads by number.
    lambda_min, lambda_max: the factors on 1/sqrt(head_dim) of the head with the highest and the lowest entropy.
    gamma: 1 is linear; higher keeps more heads near lambda_min.
    h_min, h_max: the entropies that are taken for lowest and highest; None is the profile's own, over all its layers.
    missing: what to do for a layer that the profile lacks: "error", or "leave" it the model's own scale.
    size, policy: which rows of a profile of several, such as "64x64" and "off".
    step: the denoising step; None is the mean over all that were recorded. Of a profile it needs `--heads`, and its
        entropy.csv.gz.
    branch: None is "cond", where the profile has it.
    relative: take entropies as a part of ln N, the most that N keys allow: for UNets, whose layers differ in N. h_min
        and h_max are such parts then.
    """

    profile: Any
    lambda_min: float = 1.0
    lambda_max: float = 1.3
    gamma: float = 2.0
    h_min: float | None = None
    h_max: float | None = None
    missing: Literal["error", "leave"] = "error"
    size: str | None = None
    policy: str | None = None
    step: int | None = None
    branch: str | None = None
    relative: bool = False

    def __post_init__(self) -> None:
        for name in ("lambda_min", "lambda_max", "gamma"):
            require_finite(name, getattr(self, name))
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: more than 0 is needed")
        require_one_of("missing", self.missing, ("error", "leave"))
        require_bool("relative", self.relative)
        if self.step is not None:
            require_int("step", self.step, 0, "None or ")
        for name in ("h_min", "h_max"):
            if getattr(self, name) is not None:
                require_finite(name, getattr(self, name))
        selection = Selection(
            None if self.size is None else str(self.size), self.policy, self.step, self.branch, self.relative
        )
        entropies = read_entropies(self.profile, selection)
        object.__setattr__(self, "profile", entropies)
        object.__setattr__(self, "_factors", self._factors_of(entropies))

    def _factors_of(self, entropies: HeadEntropies) -> dict[str, torch.Tensor]:
        every = [entropy for _, heads in entropies.layers for entropy in heads]
        low = min(every) if self.h_min is None else self.h_min
        high = max(every) if self.h_max is None else self.h_max
        if not low < high:
            raise ValueError(f"h_min={low:g}, h_max={high:g}: h_min must be below h_max; None takes the profile's own")
        factors = {}
        for layer, heads in entropies.layers:
            z = ((high - torch.tensor(heads, dtype=torch.float64)) / (high - low)).clamp(0.0, 1.0)
            factors[layer] = self.lambda_min + (self.lambda_max - self.lambda_min) * z**self.gamma
        return factors

    def __call__(self, info: CallInfo) -> torch.Tensor | None:
        factors = self._factors.get(info.layer)
        if factors is None:
            if self.missing == "leave":
                return None
            raise ValueError(
                f"layer {info.layer!r} is not in the profile {self.profile!r}, which starts with "
                f"{self.profile.layers[0][0]!r}: missing='leave' leaves such layers their own scale"
            )
        if len(factors) != info.num_heads:
            raise ValueError(
                f"layer {info.layer!r} has {info.num_heads} heads, but {len(factors)} in the profile {self.profile!r}"
            )
        return (factors / math.sqrt(info.head_dim)).float()
