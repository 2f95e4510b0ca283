"""Policies made of policies: for some steps, for some layers, several at once."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from entropy_attn.scale.call import CallInfo, Policy, Scale, needs_train_tokens, resolve_scale
from entropy_attn.validation import require_int, require_policy


@dataclass(frozen=True)
class Steps:
    """A policy in a window of denoising steps: start <= step < stop, counted from 0.

    Layout is settled in the first steps and detail in the last, so that a scale may be wanted in one of them only.

    stop: None is the end of the generation.
    otherwise: the policy in all other steps; None leaves them the model's own scale.
    """

    policy: Policy
    start: int = 0
    stop: int | None = None
    otherwise: Policy | None = None

    def __post_init__(self) -> None:
        require_policy("policy", self.policy)
        require_int("start", self.start, 0)
        if self.stop is not None:
            require_int("stop", self.stop, self.start + 1, "None or ")
        if self.otherwise is not None:
            require_policy("otherwise", self.otherwise)

    @property
    def needs_train_tokens(self) -> bool:
        return needs_train_tokens(self.policy) or needs_train_tokens(self.otherwise)

    def __call__(self, info: CallInfo) -> Scale:
        inside = self.start <= info.step and (self.stop is None or info.step < self.stop)
        return resolve_scale(self.policy if inside else self.otherwise, info)


@dataclass(frozen=True)
class Layers:
    """A policy for each pattern of layer names, such as {"mid_block": LogN(strength=2), r"attn1$": LogN()}.

    The patterns are searched for in the layer's name, and the first that is found decides. `apply(layers=...)` comes
    before it: by its default no policy is asked about cross-attention.

    policies: {regular expression: policy}, or pairs of them; None for a policy leaves the model's own scale.
    otherwise: the policy of layers that no pattern fits; None leaves the model's own scale.
    """

    policies: Mapping[str, Policy | None] | Iterable[tuple[str, Policy | None]]
    otherwise: Policy | None = None

    def __post_init__(self) -> None:
        given = self.policies.items() if isinstance(self.policies, Mapping) else self.policies
        try:
            pairs = tuple((pattern, policy) for pattern, policy in given)
        except (TypeError, ValueError):
            raise TypeError(f"policies={self.policies!r}: {{regular expression: policy}} is needed") from None
        if not pairs:
            raise ValueError("policies={}: at least one pattern with its policy is needed")
        for pattern, policy in pairs:
            if not isinstance(pattern, str):
                raise TypeError(f"policies: {pattern!r} is no regular expression")
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"policies: {pattern!r} is not a regular expression: {error}") from None
            if policy is not None:
                require_policy(f"policies[{pattern!r}]", policy)
        if self.otherwise is not None:
            require_policy("otherwise", self.otherwise)
        object.__setattr__(self, "policies", pairs)

    @property
    def needs_train_tokens(self) -> bool:
        return any(needs_train_tokens(policy) for _, policy in self.policies) or needs_train_tokens(self.otherwise)

    def __call__(self, info: CallInfo) -> Scale:
        for pattern, policy in self.policies:
            if re.search(pattern, info.layer):
                return resolve_scale(policy, info)
        return resolve_scale(self.otherwise, info)


@dataclass(frozen=True, init=False)
class Product:
    """The policies' factors on 1/sqrt(head_dim), multiplied; a policy that leaves the model's own counts as 1.

    UltraImage's released settings for Flux are such a product: Product(LogN(count_text_tokens=True),
    EntropyAdaptive(profile, lambda_min=1.1)).
    """

    policies: tuple[Policy, ...]

    def __init__(self, *policies: Policy):
        if not policies:
            raise TypeError("Product(): at least one policy is needed")
        for place, policy in enumerate(policies):
            require_policy(f"policies[{place}]", policy)
        object.__setattr__(self, "policies", policies)

    def __repr__(self) -> str:
        return f"Product({', '.join(map(repr, self.policies))})"

    @property
    def needs_train_tokens(self) -> bool:
        return any(map(needs_train_tokens, self.policies))

    def __call__(self, info: CallInfo) -> Scale:
        root = math.sqrt(info.head_dim)
        scales = [resolve_scale(policy, info) for policy in self.policies]
        factors = [scale * root for scale in scales if scale is not None]
        return math.prod(factors) / root if factors else None
