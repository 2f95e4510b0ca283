"""What is refused of a spread sequence, without any process: by its arguments, and by layers that ignore the spread."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from entropy_attn.errors import Unroutable
from entropy_attn.integrations.diffusers.context_parallel.shards import ContextParallel
from entropy_attn.routing.calls import AttentionArguments, DenoiserCall, LayerCall, LayerSelection
from entropy_attn.routing.router import Router
from tests.support.oracle import make_qkv

SELF, CROSS = LayerCall("blocks.0.attn1", "self"), LayerCall("blocks.0.attn2", "cross", "all")
KEYS = 47


def spread(ulysses: int = 2, ring: int = 1, uneven: bool = False) -> ContextParallel:
    shards = object.__new__(ContextParallel)
    shards.layout = SimpleNamespace(ulysses=ulysses, ring=ring, uneven=uneven, lengths=lambda n: [n] * ulysses * ring)
    return shards


def arguments(heads_kv: int = 4, **options: Any) -> AttentionArguments:
    return AttentionArguments(*make_qkv(heads_kv=heads_kv), **options)


@pytest.mark.parametrize(
    ("shards", "call", "given", "reason"),
    [
        (spread(), SELF, {"dropout_p": 0.1}, "dropout"),
        (spread(), SELF, {"is_causal": True}, "causal"),
        (spread(), SELF, {"heads_kv": 2}, "its 4 heads share 2 heads"),
        (spread(ulysses=3), SELF, {}, "ulysses_degree=3 does not divide its 4 heads"),
        (spread(1, 2), SELF, {"attn_mask": torch.ones(2, 1, 1, KEYS, dtype=torch.bool)}, "ulysses_degree instead"),
        (spread(), SELF, {"attn_mask": torch.ones(33, KEYS, dtype=torch.bool)}, r"mask of shape \(33, 47\)"),
        (spread(), SELF, {"attn_mask": torch.ones(2, 1, 1, 94, dtype=torch.bool)}, r"\(2, 1, 1, 94\)"),
        (spread(), SELF, {"attn_mask": torch.zeros(2, 1, 1, KEYS, requires_grad=True)}, "mask has a gradient"),
        (spread(), LayerCall("blocks.0.attn.image", "cross"), {}, "image prompt is whole on every device"),
    ],
)
def test_reasons(shards, call, given, reason):
    with pytest.raises(Unroutable, match=reason):
        shards.check(call, arguments(**given))


@pytest.mark.parametrize("given", [{}, {"attn_mask": torch.ones(2, 1, 1, KEYS, dtype=torch.bool)}])
def test_what_is_served(given):
    spread().check(SELF, arguments(**given))
    spread(ulysses=3, uneven=True).check(CROSS, arguments(**given))


def test_a_scale_of_another_number_of_heads_is_refused_before_anything_is_sent():
    """Each device takes the scales of its own heads: the last one alone would notice."""
    with pytest.raises(ValueError, match=r"scale: expected .* \(4,\)"):
        spread().attention(arguments(scale=torch.ones(3)))


def routed(shards: ContextParallel | None, call: LayerCall, **options: Any) -> torch.Tensor:
    router = Router(None, LayerSelection(), None, None)
    with router.denoiser_call(DenoiserCall(0, (8, 8), shards=shards)):
        return router.attention(call, arguments(), **options)


def test_a_processor_that_does_not_know_the_spread_is_refused():
    with pytest.raises(Unroutable, match=r"blocks\.0\.attn1'.*the tokens of one device alone"):
        routed(spread(), SELF)


@pytest.mark.parametrize("call", [CROSS, LayerCall("refiner.0", "self", "all")])
def test_text_that_every_device_has_is_served(call):
    assert torch.equal(routed(spread(), call), routed(None, call))


def test_a_spread_layer_outside_of_its_denoiser_is_refused():
    with pytest.raises(Unroutable, match="call the denoiser"):
        routed(None, SELF, spread_keys=True)
