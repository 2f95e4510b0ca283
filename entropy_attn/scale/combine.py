"""Policies made of policies: for some steps, for some layers, several multiplied."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import cast

from entropy_attn.display import Settings
from entropy_attn.scale.call import CallInfo, Policy, Scale, needs_train_tokens, resolve_scale
from entropy_attn.scale.key_groups import KeyGroups
from entropy_attn.validation import expected, require_int, require_policy


class Either(Settings):
    """What policies share that ask one of two: `policy`, or `otherwise`, where None keeps the default scale."""

    policy: Policy
    otherwise: Policy | None

    def _check_policies(self) -> None:
        require_policy("policy", self.policy)
        if self.otherwise is not None:
            require_policy("otherwise", self.otherwise)

    @property
    def inner(self) -> tuple[Policy | None, ...]:
        """The policies."""
        return self.policy, self.otherwise

    @property
    def needs_train_tokens(self) -> bool:
        """Whether one of the policies reads `CallInfo.train_tokens`."""
        return needs_train_tokens(self.policy) or needs_train_tokens(self.otherwise)


@dataclass(frozen=True)
class Steps(Either):
    """A policy for a window of denoising steps: start <= step < stop, counted from 0.

    The first steps decide the layout and the last ones the detail, so a scale may be useful in one of them only.

    Args:
        policy: the policy inside the window.
        start: first step of the window.
        stop: first step after the window; None is the end of the generation.
        otherwise: the policy of all other steps; None keeps the model's default scale.

    Raises:
        TypeError: `policy` or `otherwise` cannot be called, or `start` or `stop` is no integer.
        ValueError: `start` is negative, or `stop` is not greater than `start`.
    """

    policy: Policy
    start: int = 0
    stop: int | None = None
    otherwise: Policy | None = None

    def __post_init__(self) -> None:
        self._check_policies()
        require_int("start", self.start, 0)
        if self.stop is not None:
            require_int("stop", self.stop, self.start + 1, "None or ")

    def __call__(self, info: CallInfo) -> Scale:
        """The scale of one call.

        Args:
            info: the attention call.

        Returns:
            What the policy of this step returns; None for the model's default scale.
        """
        inside = self.start <= info.step and (self.stop is None or info.step < self.stop)
        return resolve_scale(self.policy if inside else self.otherwise, info)


@dataclass(frozen=True)
class Layers(Settings):
    """A policy per pattern of layer names, such as {"mid_block": LogN(strength=2), r"attn1$": LogN()}.

    The first pattern that `re.search` finds in the layer's name decides. `apply(layers=...)` is applied before: by
    default no policy is called for cross-attention.

    Args:
        policies: {regular expression: policy}, or an iterable of such pairs. The policy None keeps the model's default
            scale.
        otherwise: the policy of layers that match no pattern; None keeps the model's default scale.

    Raises:
        TypeError: `policies` is no mapping or iterable of pairs, a pattern is no string, or a policy cannot be called.
        ValueError: `policies` is empty, or a pattern is not a valid regular expression.
    """

    policies: Mapping[str, Policy | None] | Iterable[tuple[str, Policy | None]]
    otherwise: Policy | None = None

    def __post_init__(self) -> None:
        given = self.policies.items() if isinstance(self.policies, Mapping) else self.policies
        try:
            pairs = tuple((pattern, policy) for pattern, policy in given)
        except (TypeError, ValueError):
            raise TypeError(expected("policies", "{regular expression: policy}", self.policies)) from None
        if not pairs:
            raise ValueError(expected("policies", "at least one pattern with its policy", self.policies))
        for pattern, policy in pairs:
            if not isinstance(pattern, str):
                raise TypeError(expected("policies", "regular expressions as keys", pattern))
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"{expected('policies', 'valid regular expressions as keys', pattern)}: {error}"
                ) from None
            if policy is not None:
                require_policy(f"policies[{pattern!r}]", policy)
        if self.otherwise is not None:
            require_policy("otherwise", self.otherwise)
        object.__setattr__(self, "policies", pairs)

    @property
    def _pairs(self) -> tuple[tuple[str, Policy | None], ...]:
        return cast(tuple[tuple[str, Policy | None], ...], self.policies)  # since __post_init__

    @property
    def inner(self) -> tuple[Policy | None, ...]:
        """The policies."""
        return *(policy for _, policy in self._pairs), self.otherwise

    @property
    def needs_train_tokens(self) -> bool:
        """Whether one of the policies reads `CallInfo.train_tokens`."""
        return any(needs_train_tokens(policy) for _, policy in self._pairs) or needs_train_tokens(self.otherwise)

    def __call__(self, info: CallInfo) -> Scale:
        """The scale of one call.

        Args:
            info: the attention call.

        Returns:
            What the policy of this layer returns; None for the model's default scale.
        """
        for pattern, policy in self._pairs:
            if re.search(pattern, info.layer):
                return resolve_scale(policy, info)
        return resolve_scale(self.otherwise, info)


@dataclass(frozen=True, init=False)
class Product(Settings):
    """Several policies multiplied: (f1 * f2 * ...) / sqrt(D), with fi = sqrt(D) times the scale of policy i.

    A policy that returns None counts as 1. One may return `KeyGroups`, as in Product(LogN(), TACA()). UltraImage
    (arXiv 2512.04504) uses a product in its published settings for Flux: Product(LogN(count_text_tokens=True),
    EntropyAdaptive(profile, lambda_min=1.1)).

    Args:
        policies: at least one policy, as positional arguments.

    Raises:
        TypeError: no policy is given, or one cannot be called.
    """

    policies: tuple[Policy, ...]

    def __init__(self, *policies: Policy):
        if not policies:
            raise TypeError(expected("policies", "at least one policy", policies))
        for index, policy in enumerate(policies):
            require_policy(f"policies[{index}]", policy)
        object.__setattr__(self, "policies", policies)

    def __repr__(self) -> str:
        return f"Product({', '.join(map(repr, self.policies))})"

    @property
    def inner(self) -> tuple[Policy, ...]:
        """The policies."""
        return self.policies

    @property
    def needs_train_tokens(self) -> bool:
        """Whether one of the policies reads `CallInfo.train_tokens`."""
        return any(map(needs_train_tokens, self.policies))

    def __call__(self, info: CallInfo) -> Scale:
        """The scale of one call.

        Args:
            info: the attention call.

        Returns:
            The scale, one per head if a policy returns one per head; None if every policy returns None. With
            `KeyGroups` of one policy, these with that scale.

        Raises:
            ValueError: two policies return `KeyGroups`.
        """
        root = math.sqrt(info.head_dim)
        given = [resolve_scale(policy, info) for policy in self.policies]
        groups = [each for each in given if isinstance(each, KeyGroups)]
        if len(groups) > 1:
            raise ValueError(
                f"policies: expected one that returns KeyGroups for a call, got {len(groups)} in layer {info.layer!r}"
            )
        scales = [each.scale if isinstance(each, KeyGroups) else each for each in given]
        factors = [scale * root for scale in scales if scale is not None]
        product = math.prod(factors) / root if factors else None
        return replace(groups[0], scale=product) if groups else product
