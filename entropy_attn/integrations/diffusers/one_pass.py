"""A routing for single passes of a denoiser, put on and taken off between others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import ModelMixin

from entropy_attn.integrations.diffusers.apply import check_layers
from entropy_attn.integrations.diffusers.handle import Handle, handle_of
from entropy_attn.integrations.diffusers.models import layer_blocks, layer_halvings
from entropy_attn.integrations.diffusers.target import latent_train_size, resolve_target
from entropy_attn.mix import Mix
from entropy_attn.routing.calls import LayerSelection
from entropy_attn.routing.router import Router
from entropy_attn.scale import Policy


class OnePass(Handle):
    """A routing of one denoiser for passes that are no part of what `apply` routed.

    While it is on, another routing of the denoiser is off. A pass that raises takes it off.
    """

    def __init__(self, denoiser: ModelMixin, scale: Policy | None, mix: Mix | None, layers: str):
        """See `apply`.

        Raises:
            Unroutable, ValueError: as `apply` does.
        """
        denoiser, _ = resolve_target(denoiser)
        selection = LayerSelection(layers)
        size = latent_train_size(denoiser, None, None)
        halvings, blocks = layer_halvings(denoiser), layer_blocks(denoiser)
        super().__init__(denoiser, None, Router(scale, selection, None, size, "all", halvings, blocks, mix))
        check_layers(self, selection)
        if self.router.mixing is not None:
            check_layers(self, self.router.mixing.layers)
        self.check_heads()
        self.check_own_text()
        self._outer: Handle | None = None

    def put_on(self, step: int | None, num_steps: int | None) -> None:
        """Route the next calls of the denoiser, which are at this step."""
        self.take_off()
        self._isolated_step, self._generation.num_steps = step or 0, num_steps
        outer = handle_of(self.denoiser)
        if outer is not None:
            outer.pause()
        self._outer = outer
        try:
            self.install()
        except BaseException:
            self.take_off()
            raise

    def take_off(self) -> None:
        """Leave the denoiser as it was before. Does nothing twice."""
        outer, self._outer = self._outer, None
        self.remove()
        if outer is not None:
            outer.resume()

    @torch.compiler.disable(recursive=False)
    def _call_denoiser(
        self, denoiser: ModelMixin, call: Callable[..., Any], args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        try:
            return super()._call_denoiser(denoiser, call, args, kwargs)
        except BaseException:
            self.take_off()
            raise
