"""The model card that is exported with the weights; benchmarks/report writes its figures."""

from __future__ import annotations

from typing import Any

CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# shapes: the transformer

A `Lumina2Pipeline` of {parameters:.1f} M parameters in its denoiser, trained for {step:,} steps at 64 x 64 pixels on
scenes and captions of `entropy_attn.shapes.scenes` and on no other data. It loads with plain diffusers:

```python
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("entropy_attn/shapes/transformer", dtype=torch.float32)
image = pipe("a red circle and a blue square", height=64, width=64, guidance_scale=4.0).images[0]
```

| part | what it is |
|---|---|
| denoiser | `Lumina2Transformer2DModel`, width {width}, {layers} joint blocks, {heads} heads of {head_dim} |
| attention | over words and image tokens, with rotary positions and normed queries and keys |
| tokens | one per latent of 8 x 8 pixels, 64 at the training size; the words of the caption, without padding |
| autoencoder | `AutoencoderKL`, {channels} channels, convolutions only |
| text | fixed orthogonal word vectors; the denoiser learns what the words mean |
| sampling | rectified flow, `FlowMatchEulerDiscreteScheduler` |

**Sizes** are multiples of 16 pixels. Plain diffusers numbers the rows and columns of a larger image beyond those of
training ("extrapolated" positions), and the model repeats objects there. `ea.shapes.load_pipeline("transformer")` and
`--model shapes:transformer` keep the canvas of training and put its tokens closer to each other ("interpolated"
positions, Chen et al. 2023, [arXiv 2306.15595](https://arxiv.org/abs/2306.15595)).

The recipe is `benchmarks/shapes/transformer`.

**Figures.** By the exact checker, on captions of kinds and pairs that were in training, one image each.
With interpolated positions:

<!-- scale:begin -->
Not yet measured.
<!-- scale:end -->

With extrapolated positions:

<!-- extrapolated:begin -->
Not yet measured.
<!-- extrapolated:end -->

*Every object present*: each requested object is there. *And no other*: also the number of objects is exact. *Count
error*: mean |found - requested|. Differences are to the model's default scale, paired by caption and noise, with 95 %
intervals. The strength was chosen on other captions, by the share of images with every object and no other.

**Limits.** One training run. It knows nothing but these captions, and its images are toys: a difference seen here is a
lead, not proof, for large models.
"""


def card(pipe: Any, step: int) -> str:
    """The card of an exported pipeline that was trained for so many steps."""
    config = pipe.transformer.config
    count = sum(parameter.numel() for parameter in pipe.transformer.parameters())
    return CARD.format(
        parameters=count / 1e6, step=step, width=config.hidden_size, layers=config.num_layers,
        heads=config.num_attention_heads, head_dim=config.hidden_size // config.num_attention_heads,
        channels=pipe.vae.config.latent_channels,
    )  # fmt: skip
