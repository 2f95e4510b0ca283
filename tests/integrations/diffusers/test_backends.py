"""`apply` beside the attention backends of diffusers: which are served, which are refused, and what leaks."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, attention_backend

from entropy_attn.errors import Unroutable
from entropy_attn.integrations.diffusers import apply
from entropy_attn.scale import Constant
from tests.support.tiny_denoisers import CASES
from tests.support.tiny_models import Spy, make_unet
from tests.support.tiny_models import denoise as denoise_unet

FLASH = AttentionBackendName.FLASH


@pytest.fixture(autouse=True)
def _default_backend_is_restored(monkeypatch):
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", _AttentionBackendRegistry._active_backend)


def denoise(denoiser) -> torch.Tensor:
    with torch.no_grad():
        return denoiser(**CASES["flux"].call(*CASES["flux"].sizes[0]), return_dict=False)[0]


@pytest.mark.parametrize("first", ["backend", "apply"])
def test_native_backends_are_served_in_either_order(first):
    denoiser = CASES["flux"].make()
    with apply(denoiser, scale=Constant(1.5)):
        expected = denoise(denoiser)
    spy = Spy(Constant(1.5))
    if first == "backend":
        denoiser.set_attention_backend("_native_math")
    with apply(denoiser, scale=spy) as handle:
        if first == "apply":
            denoiser.set_attention_backend("_native_math")
        torch.testing.assert_close(denoise(denoiser), expected, rtol=1e-4, atol=1e-4)
        assert len(spy.calls) == len(handle.layers)
        assert denoiser.transformer_blocks[0].attn.processor._attention_backend is AttentionBackendName._NATIVE_MATH
    assert denoiser.transformer_blocks[0].attn.processor._attention_backend is AttentionBackendName._NATIVE_MATH
    assert (denoise(denoiser) - expected).abs().max() > 1e-4  # the routing is gone, the backend is still there


def test_a_backend_of_another_model_is_refused_by_name_and_not_followed():
    """`set_attention_backend` changes the default of the process; here by hand, as the real one needs a package."""
    denoiser = CASES["flux"].make()
    with apply(denoiser, scale=None):
        expected = denoise(denoiser)
        _AttentionBackendRegistry.set_active_backend(FLASH)  # what CASES["flux"].make().set_attention_backend does
        with pytest.raises(Unroutable, match=r"flash.*set_attention_backend\('native'\)"):
            denoise(denoiser)
        denoiser.set_attention_backend("native")
        assert torch.equal(denoise(denoiser), expected)


def test_the_context_manager_is_seen():
    denoiser = CASES["flux"].make()
    with apply(denoiser, scale=None):
        expected = denoise(denoiser)
        with attention_backend("_native_math"):
            torch.testing.assert_close(denoise(denoiser), expected, rtol=1e-4, atol=1e-4)
        with attention_backend("flex"), pytest.raises(Unroutable, match="flex"):
            denoise(denoiser)
        assert torch.equal(denoise(denoiser), expected)


def test_backends_do_not_concern_unets():
    unet, spy = make_unet(), Spy()
    expected = denoise_unet(unet)
    unet.set_attention_backend("_native_math")
    assert not any(hasattr(processor, "_attention_backend") for processor in unet.attn_processors.values())
    _AttentionBackendRegistry.set_active_backend(FLASH)
    assert torch.equal(denoise_unet(unet), expected)
    with apply(unet, scale=spy, train_size=16) as handle:
        torch.testing.assert_close(denoise_unet(unet), expected, rtol=1e-4, atol=1e-4)
    assert len(spy.calls) == len([layer for layer in handle.layers if layer.endswith("attn1")])
