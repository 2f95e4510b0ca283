"""Policies for some of the time, and for some of the samples, of a generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from entropy_attn.scale.call import CallInfo, Policy, Scale, any_policy, resolve_scale
from entropy_attn.scale.combine import Either
from entropy_attn.scale.key_groups import KeyGroups
from entropy_attn.validation import expected, require_number, require_one_of

_QUANTITIES = ("sigma", "timestep", "progress")


@dataclass(frozen=True)
class Schedule(Either):
    """A policy for a window of time, by the scheduler's noise level or timestep, or by the share of the steps done.

    `Steps` counts steps; here the window is the same however many steps there are. Both include their beginning and
    exclude their end: a noise level or timestep x, which falls, is inside for high >= x > low, and the progress, which
    rises from 0, for start <= progress < stop. Kynkäänniemi et al., "Applying Guidance in a Limited Interval Improves
    Sample and Distribution Quality in Diffusion Models", NeurIPS 2024, arXiv 2404.07724, define such a window of
    sigma, for classifier-free guidance.

    Any other function of time is a policy as it is: a callable that reads `CallInfo.sigma` and has an attribute
    `needs_sigma = True`, or the same of `timestep`.

    Args:
        policy: the policy inside the window.
        between: its beginning and end in the order of time: (high, low) of "sigma" and "timestep", (start, stop) of
            "progress". None is no bound.
        of: "sigma", see `CallInfo.sigma`; "timestep", from 1000 to 0; or "progress", step / num_steps.
        otherwise: the policy at all other times; None keeps the model's default scale.

    Raises:
        TypeError: `policy` or `otherwise` cannot be called, or `between` is no pair of numbers and None.
        ValueError: `of` is unknown, or the window is empty.
    """

    policy: Policy
    between: tuple[float | None, float | None]
    of: Literal["sigma", "timestep", "progress"] = "sigma"
    otherwise: Policy | None = None

    def __post_init__(self) -> None:
        self._check_policies()
        require_one_of("of", self.of, _QUANTITIES)
        falls = self.of != "progress"
        what = f"a pair ({'high, low' if falls else 'start, stop'}) of numbers or None, in the order of time"
        if not isinstance(self.between, (tuple, list)) or len(self.between) != 2:
            raise TypeError(expected("between", what, self.between))
        for bound in self.between:
            if bound is not None:
                require_number("between", bound)
        first, last = self.between
        if first is not None and last is not None and not (first > last if falls else first < last):
            raise ValueError(expected("between", what, self.between))
        object.__setattr__(self, "between", (first, last))

    @property
    def needs_sigma(self) -> bool:
        """Whether `CallInfo.sigma` is read."""
        return self.of == "sigma"

    @property
    def needs_timestep(self) -> bool:
        """Whether `CallInfo.timestep` is read."""
        return self.of == "timestep"

    @property
    def needs_num_steps(self) -> bool:
        """Whether `CallInfo.num_steps` is read."""
        return self.of == "progress"

    def __call__(self, info: CallInfo) -> Scale:
        """The scale of one call.

        Args:
            info: the attention call.

        Returns:
            What the policy of this time returns; None for the model's default scale.

        Raises:
            ValueError: the noise level, the timestep or the number of steps is not known.
        """
        at = self._at(info)
        if at is None:
            raise ValueError(
                f"of={self.of!r}: it is not known at layer {info.layer!r}; give Steps(policy, start, stop), which "
                "counts steps, or apply to a pipeline whose scheduler tells it"
            )
        first, last = self.between
        if self.of == "progress":
            inside = (first is None or at >= first) and (last is None or at < last)
        else:
            inside = (first is None or at <= first) and (last is None or at > last)
        return resolve_scale(self.policy if inside else self.otherwise, info)

    def _at(self, info: CallInfo) -> float | None:
        if self.of == "progress":
            return None if info.num_steps is None else info.step / info.num_steps
        return info.sigma if self.of == "sigma" else info.timestep


@dataclass(frozen=True)
class OfBranch(Either):
    """A policy for the samples of one branch of classifier-free guidance.

    Entropy rectifying guidance (Berrada Ifriqi et al., "Entropy Rectifying Guidance for Diffusion and Flow Models",
    NeurIPS 2025, arXiv 2504.13987) weakens the branch that guidance leads away from, by another temperature in some of
    its layers: OfBranch(Layers({"blocks.1.attn": Constant(0.5)}), "uncond"). The paper also does so in the text
    encoder, and has the weak branch see the prompt; its factors and layers differ by model.

    Args:
        policy: the policy of this branch. It must not return `KeyGroups`, which have a branch of their own.
        branch: "cond" or "uncond". A batch without guidance is the prompt's, "cond".
        otherwise: the policy of all other samples; None keeps the model's default scale.

    Raises:
        TypeError: `policy` or `otherwise` cannot be called.
        ValueError: `branch` is unknown, or a policy returns `KeyGroups`.
    """

    policy: Policy
    branch: Literal["cond", "uncond"]
    otherwise: Policy | None = None

    needs_branches: ClassVar[bool] = True
    gives_sample_scales: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._check_policies()
        require_one_of("branch", self.branch, ("cond", "uncond"))
        for name, policy in (("policy", self.policy), ("otherwise", self.otherwise)):
            if any_policy(policy, "gives_key_groups"):
                raise ValueError(expected(name, "a policy without KeyGroups, which have a branch of their own", policy))

    def __call__(self, info: CallInfo) -> Scale:
        """The scales of one call.

        Args:
            info: the attention call.

        Returns:
            What the policy of the branch returns if all samples are of one branch, else a tensor (B, H); None where
            both policies keep the model's default scale.

        Raises:
            ValueError: the branches are not known, or a policy returns `KeyGroups`.
        """
        if info.branches is None:
            raise ValueError(
                f"branch={self.branch!r}: the branches of layer {info.layer!r} are not known; apply to the pipeline"
            )
        names = (self.branch, "all") if self.branch == "cond" else (self.branch,)
        here = [name in names for name in info.branches]
        inside = resolve_scale(self.policy, info) if any(here) else None
        if all(here):
            return inside
        outside = resolve_scale(self.otherwise, info)
        if not any(here) or (inside is None and outside is None):
            return outside
        for name, chosen in (("policy", inside), ("otherwise", outside)):
            if isinstance(chosen, KeyGroups):
                raise ValueError(f"{name}: expected a policy without KeyGroups, got {chosen!r}")
        return _by_sample(here, inside, outside, info)


def _by_sample(here: list[bool], inside: Any, outside: Any, info: CallInfo) -> torch.Tensor:
    """(B, H), on the device of the scales if they are tensors; float32 at least."""
    default = info.head_dim**-0.5
    scales = [default if scale is None else scale for scale in (inside, outside)]
    tensors = [scale for scale in scales if isinstance(scale, torch.Tensor)]
    device = next((scale.device for scale in tensors if scale.device.type != "cpu"), torch.device("cpu"))
    dtype = torch.float64 if any(scale.dtype == torch.float64 for scale in tensors) else torch.float32
    wanted = torch.tensor(here).to(device, non_blocking=True)[:, None]
    of_policy, of_others = (torch.as_tensor(scale, dtype=dtype, device=device) for scale in scales)
    shape = len(here), info.num_heads
    return torch.where(wanted, of_policy.expand(shape), of_others.expand(shape))
