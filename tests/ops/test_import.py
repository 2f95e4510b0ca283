"""The names that the package has, and what importing it imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

import entropy_attn as ea

PUBLIC = {
    "AttentionOutput", "CallInfo", "EntropyRecorder", "GuidanceBlock", "LayerMapRecorder", "MapRecorder",
    "ResponseRecorder", "TSAMFluxPipeline", "TSAMStableDiffusion3Pipeline", "TSAMStableDiffusionPipeline",
    "TSAMStableDiffusionXLPipeline", "Unsupported", "WeakPassGuidance", "__version__", "apply", "attach", "attention",
    "guidance", "mix", "profile", "scale", "scaled_dot_product_attention", "shapes", "transformers",
    "unsupported_reasons",
}  # fmt: skip
PIPELINES = {
    "TSAMFluxPipeline",
    "TSAMStableDiffusion3Pipeline",
    "TSAMStableDiffusionPipeline",
    "TSAMStableDiffusionXLPipeline",
}
NEED_DIFFUSERS = {
    "GuidanceBlock", "WeakPassGuidance", "apply", "attach", "profile", "shapes", "transformers",
} | PIPELINES  # fmt: skip


def test_public_names():
    assert set(dir(ea)) == set(ea.__all__) == PUBLIC
    assert ea.__version__ == "0.1.0"
    for name in PUBLIC - NEED_DIFFUSERS:
        assert getattr(ea, name) is not None
    assert issubclass(ea.Unsupported, RuntimeError)


def test_public_names_that_need_a_model_library():
    pytest.importorskip("diffusers")
    assert callable(ea.apply)
    assert callable(ea.attach)
    assert callable(ea.GuidanceBlock)
    assert callable(ea.WeakPassGuidance)
    assert callable(ea.transformers.register)
    assert callable(ea.TSAMStableDiffusionPipeline.from_pipe)
    assert callable(ea.shapes.load_pipeline)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'attend'"):
        _ = ea.attend


def test_neither_import_nor_a_call_needs_triton_or_a_model_library():
    code = """
import sys
for name in ("triton", "diffusers", "transformers"):
    sys.modules[name] = None  # importing it raises
import entropy_attn as ea, torch
q = torch.randn(1, 2, 5, 16)
ea.attention(q, q, q, return_entropy=True)
ea.scaled_dot_product_attention(q, q, q)
ea.scale.LogN(), ea.CallInfo, ea.EntropyRecorder, ea.MapRecorder, ea.LayerMapRecorder
assert "torch._inductor" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
