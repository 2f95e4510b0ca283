"""What a policy is told of the pipeline that it is for: its texts and branches, and the statistics of the calls."""

from __future__ import annotations

from typing import Any, Literal

import torch

from entropy_attn.mix import Mix
from entropy_attn.prompts import TextPart
from entropy_attn.recorders.base import Prompt, Recorder, Request
from entropy_attn.routing.calls import LayerSelection
from entropy_attn.scale import CallInfo, Policy
from entropy_attn.scale.call import with_inner


def policy_recorders(policy: Policy | None, layers: LayerSelection) -> tuple[Recorder, ...]:
    """A recorder for each policy in this one that follows the pipeline, or asks for the branches of its batch."""
    return tuple(
        PolicyRecorder(each, layers)
        for each in with_inner(policy)
        if getattr(each, "follows", False) or getattr(each, "needs_branches", False)
    )


def mix_recorders(mix: Mix | None, layers: LayerSelection) -> tuple[Recorder, ...]:
    """A recorder for a mix that asks for the branches of the batch."""
    return () if mix is None or not mix.needs_branches else (PolicyRecorder(mix, layers, "mix"),)


class PolicyRecorder(Recorder):
    """Stands between the router and a policy with the attribute `follows = True`, or `needs_branches = True`.

    A policy with the first may have any of `attach(parts)` and `begin(prompts)`, as a `Recorder` has them;
    and both of `wants_statistics(info)` and `learn(info, scale, entropy, variance)`, of the image queries of a call.
    """

    def __init__(self, policy: Policy | Mix, layers: LayerSelection, argument: Literal["scale", "mix"] = "scale"):
        """argument: of `apply`, that the policy was given as."""
        super().__init__(None if getattr(policy, "needs_branches", False) else ("all",))
        self.policy: Any = policy
        self.argument = argument
        self.layers = layers
        self._follows = getattr(policy, "follows", False)
        self.learns = self._follows and hasattr(policy, "learn")

    def __repr__(self) -> str:
        return f"<recorder of {self.policy!r}>"

    def attach(self, parts: tuple[TextPart, ...]) -> None:
        if self._follows and hasattr(self.policy, "attach"):
            self.policy.attach(parts)

    def begin(self, prompts: list[Prompt] | None) -> None:
        if self._follows and hasattr(self.policy, "begin"):
            self.policy.begin(prompts)

    def wants(self, info: CallInfo, latent_size: tuple[int, int]) -> Request:
        return "variance" if self.learns and self.layers.takes(info) and self.policy.wants_statistics(info) else None

    def record(
        self,
        info: CallInfo,
        scale: float | torch.Tensor,
        measured: torch.Tensor,
        branches: tuple[str, ...],
        latent_size: tuple[int, int],
    ) -> None:
        self.policy.learn(info, scale, *measured.detach().unbind(-1))
