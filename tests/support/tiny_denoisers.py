"""A tiny random-weight denoiser for every row of the table, the call it takes, and what its layers then attend to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import nn

TEXT = 6


@dataclass(frozen=True)
class Layer:
    """What the layers of a name attend to: kind, tokens of picture and of text among the keys, tokens at training.

    order: where the text of joint attention is. text_queries: those among the queries.
    """

    pattern: str
    kind: str
    image: int
    text: int = 0
    train: int | None = None
    order: str = ""
    text_queries: int = 0
    prompt: int = 0  # keys that are an extra picture's


@dataclass(frozen=True)
class Case:
    """One denoiser. `call(height, width)` are its arguments, sizes in latent cells; `layers` is what they lead to."""

    row: str
    config: dict[str, Any]
    call: Callable[[int, int], dict[str, Any]]
    layers: Callable[[int, int], tuple[Layer, ...]]
    train_size: int | tuple[int, int] | None = None
    sizes: tuple[tuple[int, int], ...] = ((8, 8), (12, 8))
    masked: bool = False
    frames: int = 1
    outside: int = 0  # attention calls that come first and are of no attention layer

    def make(self) -> nn.Module:
        torch.manual_seed(0)
        denoiser = getattr(diffusers, self.row)(**self.config).eval()
        with torch.no_grad():
            for name, weight in denoiser.named_parameters():
                if name.endswith(("to_q.weight", "to_k.weight")):
                    weight.mul_(3.0)  # spread the logits, for the scale to matter
                elif not weight.any():
                    weight.normal_(std=0.1)  # what begins as zero would hide the attention
        return denoiser


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def steps(batch: int = 2) -> torch.Tensor:
    return torch.full((batch,), 10)


def text_mask(length: int = TEXT, batch: int = 2) -> torch.Tensor:
    """The last sample's text is two positions shorter."""
    mask = torch.ones(batch, length)
    mask[-1, -2:] = 0
    return mask


def ids(height: int, width: int, columns: int = 3) -> torch.Tensor:
    found = torch.zeros(height // 2, width // 2, columns)
    found[..., 1] += torch.arange(height // 2)[:, None]
    found[..., 2] += torch.arange(width // 2)[None]
    return found.reshape(-1, columns)


def self_and_cross(height: int, width: int, patch: int = 2, train: int | None = None, text: int = TEXT):
    tokens = (height // patch) * (width // patch)
    return (
        Layer(r"attn1$", "self", tokens, train=train),
        Layer(r"attn2$", "cross", tokens, text),
    )


def joint(height: int, width: int, order: str, *, patch: int = 2, train: int | None = None, text: int = TEXT):
    tokens = (height // patch) * (width // patch)
    return Layer(r"", "joint", tokens, text, train=train, order=order, text_queries=text)


_HEADS = {"attention_head_dim": 16, "num_attention_heads": 2}

CASES: dict[str, Case] = {
    "unet2d": Case(
        "UNet2DModel",
        {
            "sample_size": 16,
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "norm_num_groups": 8,
            "attention_head_dim": 8,
        },
        lambda h, w: {"sample": noise(2, 3, h, w), "timestep": steps()},
        lambda h, w: (Layer(r"", "self", math.ceil(h / 2) * math.ceil(w / 2), train=64),),
    ),
    "ldm": Case(
        "UNet2DConditionModel",
        {
            "sample_size": 16,
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 24,
            "norm_num_groups": 8,
            "attention_head_dim": 2,
        },
        lambda h, w: {
            "sample": noise(2, 4, h, w),
            "timestep": steps(),
            "encoder_hidden_states": noise(2, TEXT, 24),
            "encoder_attention_mask": text_mask(),
        },
        lambda h, w: (
            Layer(r"^mid.*attn1$", "self", math.ceil(h / 2) * math.ceil(w / 2), train=64),
            Layer(r"^mid.*attn2$", "cross", math.ceil(h / 2) * math.ceil(w / 2), TEXT),
            *self_and_cross(h, w, patch=1, train=256),
        ),
        sizes=((16, 16), (13, 21)),
        masked=True,
    ),
    "if": Case(
        "UNet2DConditionModel",
        {
            "sample_size": 16,
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "cross_attention_dim": 24,
            "out_channels": 8,
            "encoder_hid_dim": 24,
            "encoder_hid_dim_type": "text_proj",
            "norm_num_groups": 8,
            "attention_head_dim": 8,
            "resnet_time_scale_shift": "scale_shift",
            "time_embedding_type": "positional",
            "only_cross_attention": False,
        },
        lambda h, w: {"sample": noise(2, 4, h, w), "timestep": steps(), "encoder_hidden_states": noise(2, TEXT, 24)},
        lambda h, w: (Layer(r"", "joint", (h // 2) * (w // 2), TEXT, train=64, order="first"),),
    ),
    "dit": Case(
        "DiTTransformer2DModel",
        {
            **_HEADS,
            "num_layers": 2,
            "sample_size": 8,
            "out_channels": 4,
            "num_embeds_ada_norm": 1000,
            "norm_num_groups": 4,
        },
        lambda h, w: {"hidden_states": noise(2, 4, h, w), "timestep": steps(), "class_labels": torch.tensor([1, 2])},
        lambda h, w: (Layer(r"attn1$", "self", (h // 2) * (w // 2), train=16),),
    ),
    "pixart": Case(
        "PixArtTransformer2DModel",
        {
            **_HEADS,
            "num_layers": 2,
            "sample_size": 8,
            "cross_attention_dim": 32,
            "caption_channels": 20,
            "norm_num_groups": 4,
            "use_additional_conditions": False,
        },
        lambda h, w: {
            "hidden_states": noise(2, 4, h, w),
            "encoder_hidden_states": noise(2, TEXT, 20),
            "encoder_attention_mask": text_mask(),
            "timestep": steps(),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
        lambda h, w: self_and_cross(h, w, train=16),
        masked=True,
    ),
    "sd3": Case(
        "SD3Transformer2DModel",
        {
            **_HEADS,
            "num_layers": 2,
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "joint_attention_dim": 20,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 12,
            "dual_attention_layers": (0,),
            "qk_norm": "rms_norm",
        },
        lambda h, w: {
            "hidden_states": noise(2, 4, h, w),
            "encoder_hidden_states": noise(2, TEXT, 20),
            "pooled_projections": noise(2, 12),
            "timestep": steps(),
        },
        lambda h, w: (
            Layer(r"attn2$", "self", (h // 2) * (w // 2), train=16),
            joint(h, w, "last", train=16),
        ),
    ),
    "flux": Case(
        "FluxTransformer2DModel",
        {
            **_HEADS,
            "in_channels": 8,
            "num_layers": 1,
            "num_single_layers": 2,
            "joint_attention_dim": 20,
            "pooled_projection_dim": 12,
            "axes_dims_rope": (4, 4, 8),
        },
        lambda h, w: {
            "hidden_states": noise(2, h * w // 4, 8),
            "encoder_hidden_states": noise(2, TEXT, 20),
            "pooled_projections": noise(2, 12),
            "timestep": steps() / 100,
            "img_ids": ids(h, w),
            "txt_ids": torch.zeros(TEXT, 3),
        },
        lambda h, w: (joint(h, w, "first", train=64),),
        train_size=16,
    ),
    "flux2": Case(
        "Flux2Transformer2DModel",
        {
            **_HEADS,
            "in_channels": 8,
            "num_layers": 1,
            "num_single_layers": 2,
            "joint_attention_dim": 20,
            "timestep_guidance_channels": 8,
            "axes_dims_rope": (4, 4, 4, 4),
        },
        lambda h, w: {
            "hidden_states": noise(2, h * w // 4, 8),
            "encoder_hidden_states": noise(2, TEXT, 20),
            "timestep": steps() / 100,
            "guidance": torch.ones(2),
            "img_ids": ids(h, w, 4)[None].expand(2, -1, -1),
            "txt_ids": torch.zeros(2, TEXT, 4),
        },
        lambda h, w: (joint(h, w, "first", train=64),),
        train_size=16,
    ),
    "chroma": Case(
        "ChromaTransformer2DModel",
        {
            **_HEADS,
            "in_channels": 8,
            "num_layers": 1,
            "num_single_layers": 2,
            "joint_attention_dim": 20,
            "axes_dims_rope": (4, 4, 8),
            "approximator_num_channels": 8,
            "approximator_hidden_dim": 16,
            "approximator_layers": 1,
        },
        lambda h, w: {
            "hidden_states": noise(2, h * w // 4, 8),
            "encoder_hidden_states": noise(2, TEXT, 20),
            "timestep": steps() / 100,
            "attention_mask": torch.cat([text_mask(), torch.ones(2, h * w // 4)], dim=1),
            "img_ids": ids(h, w),
            "txt_ids": torch.zeros(TEXT, 3),
        },
        lambda h, w: (joint(h, w, "first", train=64),),
        train_size=16,
        masked=True,
    ),
    "qwen": Case(
        "QwenImageTransformer2DModel",
        {
            **_HEADS,
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 2,
            "joint_attention_dim": 20,
            "axes_dims_rope": (4, 4, 8),
        },
        lambda h, w: {
            "hidden_states": noise(2, h * w // 4, 16),
            "encoder_hidden_states": noise(2, TEXT, 20),
            "encoder_hidden_states_mask": text_mask().bool(),
            "timestep": steps() / 100,
            "img_shapes": [[(1, h // 2, w // 2)]] * 2,
        },
        lambda h, w: (joint(h, w, "first", train=64),),
        train_size=16,
        masked=True,
    ),
    "zimage": Case(
        "ZImageTransformer2DModel",
        {
            "in_channels": 4,
            "dim": 32,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 20,
            "axes_dims": [4, 4, 8],
            "axes_lens": [256, 32, 32],
        },
        lambda h, w: {
            "x": list(noise(2, 4, 1, h, w)),
            "t": torch.full((2,), 0.3),
            "cap_feats": [noise(40, 20), noise(20, 20)],
        },
        lambda h, w: (
            Layer(r"^noise_refiner", "self", 32, train=64),
            Layer(r"^context_refiner", "self", 0, 64, text_queries=64),
            Layer(r"^layers", "joint", 32, 64, train=64, order="last", text_queries=64),
        ),
        train_size=16,
        masked=True,
    ),
    "lumina": Case(
        "LuminaNextDiT2DModel",
        {
            "sample_size": 8,
            "in_channels": 4,
            "hidden_size": 32,
            "num_layers": 2,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "cross_attention_dim": 20,
            "multiple_of": 16,
        },
        lambda h, w: {
            "hidden_states": noise(2, 4, h, w),
            "encoder_hidden_states": noise(2, TEXT, 20),
            "encoder_mask": text_mask().bool(),
            "timestep": torch.full((2,), 0.3),
            "image_rotary_emb": torch.polar(torch.ones(48, 48, 8), noise(48, 48, 8)),
            "cross_attention_kwargs": {},
        },
        lambda h, w: self_and_cross(h, w, train=16),
        masked=True,
    ),
    "lumina2": Case(
        "Lumina2Transformer2DModel",
        {
            "sample_size": 8,
            "in_channels": 4,
            "hidden_size": 32,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 16,
            "axes_dim_rope": (4, 4, 8),
            "axes_lens": (32, 32, 32),
            "cap_feat_dim": 20,
        },
        lambda h, w: {
            "hidden_states": noise(2, 4, h, w),
            "encoder_hidden_states": noise(2, TEXT, 20),
            "encoder_attention_mask": text_mask().bool(),
            "timestep": torch.full((2,), 0.3),
        },
        lambda h, w: (
            Layer(r"^context_refiner", "self", 0, TEXT, text_queries=TEXT),
            Layer(r"^noise_refiner", "self", (h // 2) * (w // 2), train=16),
            Layer(r"^layers", "joint", (h // 2) * (w // 2), TEXT, train=16, order="ragged", text_queries=TEXT),
        ),
        masked=True,
    ),
    "auraflow": Case(
        "AuraFlowTransformer2DModel",
        {
            **_HEADS,
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 1,
            "joint_attention_dim": 20,
            "caption_projection_dim": 32,
            "pos_embed_max_size": 64,
        },
        lambda h, w: {
            "hidden_states": noise(2, 4, h, w),
            "encoder_hidden_states": noise(2, TEXT, 20),
            "timestep": torch.full((2,), 0.3),
        },
        lambda h, w: (joint(h, w, "first", train=16, text=TEXT + 8),),
    ),
    "cogvideox": Case(
        "CogVideoXTransformer3DModel",
        {
            **_HEADS,
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
    "cogview4": Case(
        "CogView4Transformer2DModel",
        {
            **_HEADS,
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "text_embed_dim": 20,
            "time_embed_dim": 8,
            "condition_dim": 4,
            "pos_embed_max_size": 16,
            "rope_axes_dim": (16, 16),
        },
        lambda h, w: {
            "hidden_states": noise(2, 4, h, w),
            "encoder_hidden_states": noise(2, TEXT, 20),
            "timestep": steps(),
            **{name: torch.ones(2, 2) for name in ("original_size", "target_size", "crop_coords")},
        },
        lambda h, w: (joint(h, w, "first", train=16),),
    ),
    "mochi": Case(
        "MochiTransformer3DModel",
        {
            **_HEADS,
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
        outside=1,  # the pooling of its text
        frames=3,
    ),
    "sana": Case(
        "SanaTransformer2DModel",
        {
            **_HEADS,
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 20,
        },
        lambda h, w: {
            "hidden_states": noise(2, 4, h, w),
            "encoder_hidden_states": noise(2, TEXT, 20),
            "encoder_attention_mask": text_mask(),
            "timestep": steps(),
        },
        lambda h, w: (Layer(r"attn2$", "cross", h * w, TEXT),),
        masked=True,
    ),
    "wan": Case(
        "WanTransformer3DModel",
        {
            **_HEADS,
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
            **_HEADS,
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
            **_HEADS,
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
            **_HEADS,
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
    "hunyuan-dit": Case(
        "HunyuanDiT2DModel",
        {
            **_HEADS,
            "in_channels": 4,
            "patch_size": 2,
            "sample_size": 8,
            "hidden_size": 32,
            "num_layers": 2,
            "mlp_ratio": 2.0,
            "cross_attention_dim": 20,
            "cross_attention_dim_t5": 16,
            "pooled_projection_dim": 8,
            "text_len": TEXT,
            "text_len_t5": 3,
            "activation_fn": "gelu-approximate",
            "use_style_cond_and_image_meta_size": False,
        },
        lambda h, w: {
            "hidden_states": noise(2, 4, h, w),
            "timestep": steps().float(),
            "encoder_hidden_states": noise(2, TEXT, 20),
            "text_embedding_mask": text_mask(),
            "encoder_hidden_states_t5": noise(2, 3, 16),
            "text_embedding_mask_t5": text_mask(3),
            "image_rotary_emb": (noise(h * w // 4, 16), noise(h * w // 4, 16)),
        },
        lambda h, w: self_and_cross(h, w, train=16, text=TEXT + 3),
    ),
}
