"""Undocumented names of transformers that text maps rely on. If a test fails, transformers has changed."""

from __future__ import annotations

from transformers import AttentionInterface, AttentionMaskInterface, CLIPTextConfig, CLIPTextModel


def test_a_registered_function_can_be_removed():
    for interface in (AttentionInterface, AttentionMaskInterface):
        interface.register("ours", len)
        assert interface()["ours"] is len
        del interface._global_mapping["ours"]
        assert "ours" not in interface().valid_keys()
        assert callable(interface()["sdpa"])


def test_the_implementation_is_an_attribute_of_the_configuration():
    config = CLIPTextConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1, intermediate_size=8)
    model = CLIPTextModel(config)
    assert model.config is config and config._attn_implementation == "sdpa"
    config._attn_implementation = "eager"
    assert model.config._attn_implementation == "eager"
