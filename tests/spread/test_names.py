"""Undocumented names of diffusers' context parallelism that are relied on. If a test fails, diffusers has changed."""

from __future__ import annotations

import inspect

import pytest
from diffusers import ContextParallelConfig, ModelMixin
from diffusers.models import _modeling_parallel, attention_dispatch

from entropy_attn.integrations.diffusers.models.table import MODELS

TEMPLATE = ["query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa", "return_lse"]
NAMES = [
    (attention_dispatch, "SeqAllToAllDim"),
    (attention_dispatch, "all_to_all_single_any_o_async"),
    (attention_dispatch, "_templated_context_parallel_attention"),
    (_modeling_parallel, "gather_size_by_comm"),
]


@pytest.mark.parametrize(("holder", "name"), NAMES)
def test_private_names_exist(holder, name):
    assert hasattr(holder, name), f"{holder.__name__} of diffusers has no {name}"


def test_the_template():
    parameters = list(inspect.signature(attention_dispatch._templated_context_parallel_attention).parameters)
    assert parameters == [*TEMPLATE, "forward_op", "backward_op", "_parallel_config"]
    for ring in (attention_dispatch.TemplatedRingAttention, attention_dispatch.TemplatedRingAnythingAttention):
        source = inspect.getsource(ring.forward)
        assert "all_gather_tensor(kv_buffer" in source, "a ring no longer gathers all keys: docs/many-gpus.md says so"
        assert "_save_ctx=i == 0" in source


def test_the_configuration():
    config = ContextParallelConfig(ulysses_degree=2)
    for name in ("_flattened_mesh", "_ulysses_mesh", "_ulysses_local_rank"):
        assert hasattr(config, name)
    assert (config.ring_degree, config.ulysses_degree) == (1, 2)
    assert not config.ulysses_anything and not config.ring_anything
    assert ModelMixin._parallel_config is None
    assert "context_parallel_config" in inspect.signature(_modeling_parallel.ParallelConfig).parameters


def test_exchanges():
    assert list(inspect.signature(attention_dispatch.SeqAllToAllDim.forward).parameters)[1:3] == ["group", "input"]
    source = inspect.getsource(attention_dispatch.all_to_all_single_any_o_async)
    assert '"NUM_QO_HEAD"' in source and '"Q_S_LOCAL"' in source


def test_models_with_a_plan():
    import diffusers

    planned = {m.denoiser for m in MODELS if getattr(getattr(diffusers, m.denoiser), "_cp_plan", None) is not None}
    assert planned == {
        "Flux2Transformer2DModel",
        "FluxTransformer2DModel",
        "LTXVideoTransformer3DModel",
        "QwenImageTransformer2DModel",
        "WanTransformer3DModel",
    }, "docs/many-gpus.md and tests/spread/run_behavior.py name these"
