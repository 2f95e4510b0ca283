"""A policy from measured entropies: it sharpens the heads whose attention is already sharp."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from entropy_attn.display import Settings
from entropy_attn.scale.call import CallInfo
from entropy_attn.scale.head_entropies import HeadEntropies, Selection, read_entropies
from entropy_attn.validation import require_bool, require_int, require_number, require_one_of


@dataclass(frozen=True)
class EntropyAdaptive(Settings):
    """One scale per head from a recorded profile: the lower a head's entropy, the higher its scale.

    scale = (lambda_min + (lambda_max - lambda_min) * z**gamma) / sqrt(D), with z = (h_max - h) / (h_max - h_min)
    clamped to [0, 1], and h the head's mean entropy in nats. Local heads are sharpened for detail; global heads keep
    their scale, and with it the structure of the image.

    Source: Zhao et al., "UltraImage", arXiv 2512.04504. The defaults are those of github.com/thu-ml/DiT-Extrapolation
    for Qwen-Image, which sets h_min=0.04 and h_max=6.25 from one denoising step. For Flux it sets lambda_min=1.1,
    h_min=0.44, h_max=6.0 and multiplies by the scale of `LogN` (see `Product`). It averages the entropies over blocks
    of 128 queries; this class uses all queries. The formula does not contain the image size: profile at the size that
    you generate.

    Args:
        profile: an `EntropyRecorder`, its DataFrame, the path of a .csv or .json file that it wrote, or the folder that
            `ea.profile` or `entropy-attn profile` wrote. Layers are matched by name and heads by index.
        lambda_min: factor on 1 / sqrt(D) of a head with the highest entropy.
        lambda_max: factor on 1 / sqrt(D) of a head with the lowest entropy.
        gamma: exponent on z; 1 is linear, a higher one keeps more heads near `lambda_min`.
        h_min: lowest entropy, in nats; None is the minimum over all heads and layers of the profile.
        h_max: highest entropy, in nats; None is the maximum over all heads and layers of the profile.
        missing: "error" raises for a layer that the profile does not contain; "leave" keeps its default scale.
        size: the size to read from a profile of several sizes, such as "64x64".
        policy: the scale policy to read from a profile of several, such as "off".
        step: denoising step to read; None is the mean over all recorded steps. A saved profile has single steps if it
            was made with `--heads`, in entropy.csv.gz.
        branch: guidance branch to read; None is "cond" if the profile has it, else all branches.
        relative: divide entropies by ln Nk, the maximum for Nk keys: for UNets, whose layers differ in Nk. `h_min` and
            `h_max` are then fractions as well.

    Raises:
        TypeError: `profile` is of another type, or a setting has the wrong type.
        ValueError: the profile cannot be read or is empty or ambiguous, `lambda_min`, `lambda_max` or `gamma` is not
            positive, `h_min` is not less than `h_max`, or a setting is not allowed.
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
            require_number(name, getattr(self, name), above=0.0)
        require_one_of("missing", self.missing, ("error", "leave"))
        require_bool("relative", self.relative)
        if self.step is not None:
            require_int("step", self.step, 0, "None or ")
        for name in ("h_min", "h_max"):
            if getattr(self, name) is not None:
                require_number(name, getattr(self, name))
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
            raise ValueError(
                f"h_min, h_max: expected h_min < h_max, got {low:g} and {high:g}; None takes the profile's minimum and "
                "maximum"
            )
        factors = {}
        for layer, heads in entropies.layers:
            z = ((high - torch.tensor(heads, dtype=torch.float64)) / (high - low)).clamp(0.0, 1.0)
            factors[layer] = self.lambda_min + (self.lambda_max - self.lambda_min) * z**self.gamma
        return factors

    def __call__(self, info: CallInfo) -> torch.Tensor | None:
        """The scales of one call.

        Args:
            info: the attention call.

        Returns:
            A float32 tensor (H,); None for a layer that is not in the profile, with `missing="leave"`.

        Raises:
            ValueError: the layer is not in the profile, or has another number of heads there.
        """
        factors = vars(self)["_factors"].get(info.layer)
        if factors is None:
            if self.missing == "leave":
                return None
            raise ValueError(
                f"layer: expected one in the profile {self.profile!r}, which starts with "
                f"{self.profile.layers[0][0]!r}, got {info.layer!r}; missing='leave' keeps such layers' default scale"
            )
        if len(factors) != info.num_heads:
            raise ValueError(
                f"layer {info.layer!r}: expected {len(factors)} heads, as in the profile {self.profile!r}, got "
                f"{info.num_heads}"
            )
        return (factors / math.sqrt(info.head_dim)).float()
