"""A guider of diffusers' modular pipelines that leads away from a pass with weaker attention."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from torch import Tensor

from entropy_attn.integrations.diffusers.one_pass import OnePass
from entropy_attn.mix import Mix
from entropy_attn.routing.calls import LayerSelection
from entropy_attn.scale import Policy
from entropy_attn.scale.call import any_policy
from entropy_attn.validation import expected, require_bool, require_number, require_policy


class WeakPassGuidance(BaseGuidance):
    """A guider: each step has a further pass of the prompt with weaker attention, which guidance leads away from.

    The prediction is, where D are the predictions of the passes,

        D(uncond) + guidance_scale (D(cond) - D(uncond)) + weak_guidance_scale (D(cond) - D(weak)),

    with D(cond) for the first two terms where guidance_scale is 1. The pass is made weak by a mix, as in
    perturbed-attention guidance and SoftPAG (arXiv 2403.17377 and 2506.10978), or by a scale, as in entropy rectifying
    guidance (arXiv 2504.13987):

        WeakPassGuidance(mix=ea.mix.SoftPAG(0.5, layers="mid_block"))
        WeakPassGuidance(scale=ea.scale.Constant(0.5), layers="mid_block", guidance_scale=1.0)

    For modular pipelines: `pipe.update_components(guider=WeakPassGuidance(...))`. The denoiser is routed between
    `prepare_models` and `cleanup_models` of the weak pass alone, and not any more if a pass raises; a routing by
    `ea.apply` is off for that pass, with its scale and its recorders. Guiders with policies or mixes cannot be saved.

    Args:
        mix: an `ea.mix.Mix` for the weak pass; None mixes nothing.
        scale: a scale policy for the weak pass; None keeps the model's default scale.
        layers: the layers of `scale`, as `apply(layers=)` takes them.
        guidance_scale: of classifier-free guidance; 1 turns it off.
        weak_guidance_scale: of the guidance away from the weak pass; 0 turns it, and the pass, off.
        start: the share of the steps after which classifier-free guidance starts.
        stop: the share of the steps after which it stops.
        weak_start: the share of the steps after which the guidance away from the weak pass starts.
        weak_stop: the share of the steps after which it stops.
        enabled: False makes one pass of each step, without any guidance.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: neither `mix` nor `scale` is given, one of them is for a branch of a batch, which these passes do
            not have, a number is not finite, or a window is not 0 <= start <= stop <= 1 with start < 1.
    """

    _input_predictions = ["pred_cond", "pred_uncond", "pred_weak"]  # noqa: RUF012  (diffusers wants a list)

    @register_to_config
    def __init__(
        self,
        *,  # diffusers forgets positional arguments in `new`
        mix: Mix | None = None,
        scale: Policy | None = None,
        layers: str = "self",
        guidance_scale: float = 7.5,
        weak_guidance_scale: float = 2.8,
        start: float = 0.0,
        stop: float = 1.0,
        weak_start: float = 0.0,
        weak_stop: float = 1.0,
        enabled: bool = True,
    ):
        require_bool("enabled", enabled)
        _check_window("", start, stop)
        _check_window("weak_", weak_start, weak_stop)
        super().__init__(start, stop, enabled)
        if mix is None and scale is None:
            raise ValueError("mix, scale: expected at least one of them, got None and None")
        if mix is not None and not isinstance(mix, Mix):
            raise TypeError(expected("mix", "an ea.mix.Mix or None", mix))
        if scale is not None:
            require_policy("scale", scale)
        LayerSelection(layers)
        for name, of_branch in (
            ("mix", getattr(mix, "needs_branches", False)),
            ("scale", any_policy(scale, "needs_branches")),
        ):
            if of_branch:
                given = mix if name == "mix" else scale
                raise ValueError(expected(name, "one for all samples, as each of these passes has one branch", given))
        require_number("guidance_scale", guidance_scale)
        require_number("weak_guidance_scale", weak_guidance_scale)
        self.mix, self.scale, self.layers = mix, scale, layers
        self.guidance_scale, self.weak_guidance_scale = guidance_scale, weak_guidance_scale
        self._weak_window = weak_start, weak_stop
        self._routing: OnePass | None = None

    def set_state(self, step: int, num_inference_steps: int, timestep: Any) -> None:
        """A step begins.

        Args:
            step: its number, from 0.
            num_inference_steps: number of steps.
            timestep: of the scheduler.
        """
        self._take_off()  # of a pass that was left without `cleanup_models`
        super().set_state(step, num_inference_steps, timestep)

    def prepare_models(self, denoiser: torch.nn.Module) -> None:
        """A pass begins: the weak one, which is the last, is routed.

        Args:
            denoiser: the UNet or transformer.

        Raises:
            Unroutable: it cannot be routed.
        """
        self._count_prepared += 1
        if not self._is_weak_enabled() or self._count_prepared != self.num_conditions:
            return
        if self._routing is None or self._routing.denoiser is not denoiser:
            self._routing = OnePass(denoiser, self.scale, self.mix, self.layers)
        self._routing.put_on(self._step, self._num_inference_steps)

    def cleanup_models(self, denoiser: torch.nn.Module) -> None:
        """A pass is over: the denoiser is as before.

        Args:
            denoiser: the UNet or transformer.
        """
        self._take_off()

    def prepare_inputs(self, data: dict[str, Any]) -> list[Any]:
        """The inputs of each pass.

        Args:
            data: (conditional, unconditional) inputs by name.

        Returns:
            One diffusers `BlockState` for each pass.
        """
        return [self._prepare_batch(data, index, name) for index, name in self._passes()]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: dict[str, Any]) -> list[Any]:
        """The inputs of each pass.

        Args:
            data: the state of the pipeline.
            input_fields: names of its (conditional, unconditional) fields by the name of an input.

        Returns:
            One diffusers `BlockState` for each pass.
        """
        return [self._prepare_batch_from_block_state(input_fields, data, index, name) for index, name in self._passes()]

    def forward(
        self, pred_cond: Tensor, pred_uncond: Tensor | None = None, pred_weak: Tensor | None = None
    ) -> GuiderOutput:
        """The guided prediction.

        Args:
            pred_cond: the prediction for the prompt.
            pred_uncond: for the negative prompt; None without classifier-free guidance.
            pred_weak: of the weak pass; None without it.

        Returns:
            diffusers' output, with `pred`.
        """
        pred = pred_cond
        if pred_uncond is not None:
            pred = pred_uncond + self.guidance_scale * (pred_cond - pred_uncond)
        if pred_weak is not None:
            pred = pred + self.weak_guidance_scale * (pred_cond - pred_weak)
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)

    @property
    def is_conditional(self) -> bool:
        """Whether the pass is of the prompt."""
        return not (self._is_cfg_enabled() and self._count_prepared == 2)

    @property
    def num_conditions(self) -> int:
        """Number of passes of a step."""
        return len(self._passes())

    def save_pretrained(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: a configuration file has no place for policies and mixes.

        Args:
            args: not used.
            kwargs: not used.

        Raises:
            ValueError: always.
        """
        raise ValueError("WeakPassGuidance: a policy or a mix cannot be saved; make the guider anew")

    save_config = save_pretrained

    def _passes(self) -> list[tuple[int, str]]:
        """The index of each pass among (conditional, unconditional), and the name of its prediction."""
        passes = [(0, "pred_cond")]
        if self._is_cfg_enabled():
            passes.append((1, "pred_uncond"))
        if self._is_weak_enabled():
            passes.append((0, "pred_weak"))
        return passes

    def _is_cfg_enabled(self) -> bool:
        return self._is_inside(self._start, self._stop) and not math.isclose(self.guidance_scale, 1.0)

    def _is_weak_enabled(self) -> bool:
        return self._is_inside(*self._weak_window) and self.weak_guidance_scale != 0.0

    def _is_inside(self, start: float, stop: float) -> bool:
        if not self._enabled:
            return False
        number = self._num_inference_steps
        return number is None or int(start * number) <= self._step < int(stop * number)

    def _take_off(self) -> None:
        if self._routing is not None:
            self._routing.take_off()


def _check_window(prefix: str, start: float, stop: float) -> None:
    require_number(f"{prefix}start", start, least=0.0)
    require_number(f"{prefix}stop", stop, least=0.0)
    if not start < 1.0:
        raise ValueError(expected(f"{prefix}start", "a number from 0 to below 1", start))
    if not start <= stop <= 1.0:
        raise ValueError(expected(f"{prefix}stop", f"a number from {prefix}start={start} to 1", stop))
