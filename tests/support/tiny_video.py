"""Denoisers for videos."""

from __future__ import annotations

import torch

from tests.support.tiny_case import HEADS, TEXT, Case, Layer, noise, steps, text_mask

VIDEO: dict[str, Case] = {
    "cogvideox": Case(
        "CogVideoXTransformer3DModel",
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 8,
            "text_embed_dim": 20,
            "num_layers": 2,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 9,
            "max_text_seq_length": TEXT,
            "use_rotary_positional_embeddings": True,
        },
        lambda h, w: {
            "hidden_states": noise(2, 3, 4, h, w),
            "encoder_hidden_states": noise(2, TEXT, 20),
            "timestep": steps(),
        },
        lambda h, w: (
            Layer(r"", "joint", 3 * (h // 2) * (w // 2), TEXT, train=3 * 16, order="first", text_queries=TEXT),
        ),
        frames=3,
    ),
    "mochi": Case(
        "MochiTransformer3DModel",
        {
            **HEADS,
            "in_channels": 4,
            "num_layers": 2,
            "pooled_projection_dim": 12,
            "text_embed_dim": 16,
            "time_embed_dim": 8,
            "max_sequence_length": TEXT,
        },
        lambda h, w: {
            "hidden_states": noise(2, 4, 3, h, w),
            "encoder_hidden_states": noise(2, TEXT, 16),
            "encoder_attention_mask": torch.ones(2, TEXT).bool(),
            "timestep": steps(),
        },
        lambda h, w: (
            Layer(r"", "joint", 3 * (h // 2) * (w // 2), TEXT, train=3 * 64, order="last", text_queries=TEXT),
        ),
        train_size=16,
        outside=1,  # the pooling of the text
        frames=3,
    ),
    "wan": Case(
        "WanTransformer3DModel",
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 20,
            "freq_dim": 8,
            "ffn_dim": 16,
            "num_layers": 2,
            "rope_max_seq_len": 32,
        },
        lambda h, w: {
            "hidden_states": noise(2, 4, 3, h, w),
            "encoder_hidden_states": noise(2, TEXT, 20),
            "timestep": steps(),
        },
        lambda h, w: (
            Layer(r"attn1$", "self", 3 * (h // 2) * (w // 2), train=3 * 64),
            Layer(r"attn2$", "cross", 3 * (h // 2) * (w // 2), TEXT),
        ),
        train_size=16,
        frames=3,
    ),
    "wan-i2v": Case(
        "WanTransformer3DModel",
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 20,
            "freq_dim": 8,
            "ffn_dim": 16,
            "num_layers": 2,
            "rope_max_seq_len": 32,
            "image_dim": 12,
            "added_kv_proj_dim": 32,
        },
        lambda h, w: {
            "hidden_states": noise(2, 4, 3, h, w),
            "encoder_hidden_states": noise(2, 512, 20),
            "encoder_hidden_states_image": noise(2, 5, 12),
            "timestep": steps(),
        },
        lambda h, w: (
            Layer(r"attn1$", "self", 3 * (h // 2) * (w // 2), train=3 * 64),
            Layer(r"attn2$", "cross", 3 * (h // 2) * (w // 2), 512),
            Layer(r"attn2\.image$", "cross", 3 * (h // 2) * (w // 2), 0, prompt=5),
        ),
        train_size=16,
        frames=3,
    ),
    "ltx": Case(
        "LTXVideoTransformer3DModel",
        {
            **HEADS,
            "in_channels": 8,
            "out_channels": 8,
            "cross_attention_dim": 32,
            "num_layers": 2,
            "caption_channels": 20,
        },
        lambda h, w: {
            "hidden_states": noise(2, 3 * h * w, 8),
            "encoder_hidden_states": noise(2, TEXT, 20),
            "encoder_attention_mask": text_mask(),
            "timestep": steps(),
            "num_frames": 3,
            "height": h,
            "width": w,
        },
        lambda h, w: (
            Layer(r"attn1$", "self", 3 * h * w, train=3 * 16),
            Layer(r"attn2$", "cross", 3 * h * w, TEXT),
        ),
        train_size=4,
        sizes=((4, 4), (6, 4)),
        masked=True,
        frames=3,
    ),
    "hunyuan-video": Case(
        "HunyuanVideoTransformer3DModel",
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "text_embed_dim": 20,
            "pooled_projection_dim": 12,
            "rope_axes_dim": (4, 4, 8),
        },
        lambda h, w: {
            "hidden_states": noise(2, 4, 3, h, w),
            "encoder_hidden_states": noise(2, TEXT, 20),
            "encoder_attention_mask": text_mask(),
            "pooled_projections": noise(2, 12),
            "timestep": steps(),
            "guidance": torch.ones(2),
        },
        lambda h, w: (
            Layer(r"token_refiner", "self", 0, TEXT, text_queries=TEXT),
            Layer(r"", "joint", 3 * (h // 2) * (w // 2), TEXT, train=3 * 64, order="last", text_queries=TEXT),
        ),
        train_size=16,
        masked=True,
        frames=3,
    ),
}
