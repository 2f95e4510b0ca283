"""The same transformer, faster on a CPU: rotary positions in real numbers, so that blocks compile into few loops."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def rotate(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Rotate pairs of neighboring dims: x (B, N, H, D), turns (B, N, 1, D / 2, 2) of cosine and sine."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = turns.unbind(-1)
    return torch.stack([a * cosine - b * sine, a * sine + b * cosine], -1).flatten(-2)


class RealRotary:
    """The same as `Lumina2AttnProcessor2_0`, without complex numbers and without a copy of the keys for each head."""

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, image_rotary_emb=None):
        query, key, value = (
            layer(x).unflatten(-1, (attn.heads, -1))
            for layer, x in (
                (attn.to_q, hidden_states), (attn.to_k, encoder_hidden_states), (attn.to_v, encoder_hidden_states)
            )
        )  # fmt: skip
        turns = torch.view_as_real(image_rotary_emb)[:, :, None].float()
        query, key = rotate(attn.norm_q(query), turns), rotate(attn.norm_k(key), turns)
        if attention_mask is not None:
            attention_mask = attention_mask.bool().view(len(query), 1, 1, -1)
        out = F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=attention_mask,
            scale=attn.scale,
        )  # fmt: skip
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))


def accelerate(model):
    """Compile the blocks of a transformer for training, in place; its weights and results stay the same."""
    model.rope_embedder.freqs_cis = [table.to(torch.complex64) for table in model.rope_embedder.freqs_cis]
    for block in (*model.context_refiner, *model.noise_refiner, *model.layers):
        block.attn.set_processor(RealRotary())
        block.compile(dynamic=True)
    return model
