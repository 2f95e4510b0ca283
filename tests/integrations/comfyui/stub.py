"""Stand-ins for the parts of ComfyUI that the nodes touch, written from its interface: `test_real.py` compares them.

The attention function and its override, patches before attn1 and attn2, wrappers around samplings and passes, the clone
of a ModelPatcher, and a UNet and a transformer with random weights.
"""

from __future__ import annotations

import copy
import functools
import math
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def overridable(func):
    """As ComfyUI's `wrap_attn`: an override gets the function itself and its arguments."""

    @functools.wraps(func)
    def wrapper(*args, **kwargs):
        if "_inside_attn_wrapper" not in kwargs:
            kwargs["_inside_attn_wrapper"] = True
            options = kwargs.get("transformer_options")
            if options is not None and "optimized_attention_override" in options:
                return options["optimized_attention_override"](func, *args, **kwargs)
        return func(*args, **kwargs)

    return wrapper


@overridable
def attention(q, k, v, heads, mask=None, attn_precision=None, skip_reshape=False, skip_output_reshape=False, **kwargs):
    """ComfyUI's attention by torch. Like that of version 0.3.64 it ignores `scale`."""
    if not skip_reshape:
        width = q.shape[-1] // heads
        q, k, v = (t.unflatten(-1, (-1, width)).transpose(1, 2) for t in (q, k, v))
    if attn_precision == torch.float32:
        q, k = q.float(), k.float()
    if mask is not None and mask.ndim == 3:
        mask = mask.unsqueeze(1)
    out = F.scaled_dot_product_attention(
        q, k, v.to(q.dtype), attn_mask=mask, enable_gqa=kwargs.get("enable_gqa", False)
    ).to(v.dtype)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


class Executor:
    """As comfy.patcher_extension.WrapperExecutor: a wrapper gets it first, and calls it to go on."""

    def __init__(self, original, wrappers):
        self.original, self.wrappers = original, list(wrappers)

    def __call__(self, *args, **kwargs):
        if not self.wrappers:
            return self.original(*args, **kwargs)
        return self.wrappers[0](Executor(self.original, self.wrappers[1:]), *args, **kwargs)


class Patcher:
    """As comfy.model_patcher.ModelPatcher."""

    def __init__(self, model):
        self.model, self.model_options, self.wrappers = model, {"transformer_options": {}}, {}

    def clone(self):
        other = Patcher(self.model)
        other.model_options = copy.deepcopy(self.model_options)
        other.wrappers = {
            kind: {key: list(found) for key, found in by_key.items()} for kind, by_key in self.wrappers.items()
        }
        return other

    def add_wrapper_with_key(self, wrapper_type, key, wrapper):
        self.wrappers.setdefault(wrapper_type, {}).setdefault(key, []).append(wrapper)

    def set_model_attn1_patch(self, patch):
        self._patch("attn1_patch", patch)

    def set_model_attn2_patch(self, patch):
        self._patch("attn2_patch", patch)

    def _patch(self, name, patch):
        patches = self.model_options["transformer_options"].setdefault("patches", {})
        patches[name] = [*patches.get(name, []), patch]

    def wrapped(self, wrapper_type, original):
        return Executor(original, [w for found in self.wrappers.get(wrapper_type, {}).values() for w in found])


class Attention(nn.Module):
    def __init__(self, width, context, heads):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(size, width) for size in (width, context, context))

    def forward(self, x, context, value, options):
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context if value is None else value)
        return attention(q, k, v, self.heads, attn_precision=None, transformer_options=options)


class Block(nn.Module):
    """As BasicTransformerBlock: patches may exchange what attn1 and attn2 get."""

    def __init__(self, width, context, heads):
        super().__init__()
        self.attn1, self.attn2 = Attention(width, width, heads), Attention(width, context, heads)

    def forward(self, x, context, options):
        patches = options.get("patches", {})
        extra = {key: value for key, value in options.items() if key != "patches"}
        n, keys, value = x, x, None
        for patch in patches.get("attn1_patch", []):
            n, keys, value = patch(n, keys, keys if value is None else value, extra)
        x = x + self.attn1(n, keys, value, options)
        n, keys, value = x, context, None
        for patch in patches.get("attn2_patch", []):
            n, keys, value = patch(n, keys, keys if value is None else value, extra)
        return x + self.attn2(n, keys, value, options)


class UNetModel(nn.Module):
    """Blocks at the size of the latent and at half of it."""

    def __init__(self, width=16, context=12, heads=2):
        super().__init__()
        self.enter, self.leave = nn.Linear(4, width), nn.Linear(width, 4)
        self.blocks = nn.ModuleList(Block(width, context, heads) for _ in range(3))

    def forward(self, x, timestep, context, transformer_options):
        size = x.shape[-2:]
        half = tuple(math.ceil(side / 2) for side in size)
        plan = ((("input", 1), size), (("middle", 0), half), (("output", 2), size))
        h = self.enter(x.movedim(1, -1)).movedim(-1, 1)
        for block, (place, grid) in zip(self.blocks, plan, strict=True):
            transformer_options["block"], transformer_options["block_index"] = place, 0
            transformer_options["activations_shape"] = [len(h), h.shape[1], *grid]
            level = F.adaptive_avg_pool2d(h, grid)
            tokens = block(level.flatten(2).mT, context, transformer_options)
            h = h + F.interpolate(tokens.mT.unflatten(-1, tuple(grid)) - level, size=tuple(size))
        return self.leave(h.movedim(1, -1)).movedim(-1, 1)


class Flux(nn.Module):
    """Two joint blocks, the text first."""

    patch_size = 2

    def __init__(self, width=16, context=12, heads=2):
        super().__init__()
        self.heads = heads
        self.text, self.enter, self.leave = nn.Linear(context, width), nn.Linear(16, width), nn.Linear(width, 16)
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))

    def forward(self, x, timestep, context, transformer_options, ref_latents=None):
        height, width = x.shape[-2:]
        pad = (0, width % 2, 0, height % 2)
        tokens = [F.unfold(F.pad(latent, pad), 2, stride=2).mT for latent in [x, *(ref_latents or [])]]
        image = tokens[0].shape[1]
        h = torch.cat([self.text(context), *(self.enter(found) for found in tokens)], dim=1)
        for qkv in self.qkv:
            q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in qkv(h).chunk(3, -1))
            h = h + attention(
                q, k, v, self.heads, skip_reshape=True, mask=None, transformer_options=transformer_options
            )
        out = self.leave(h[:, context.shape[1] : context.shape[1] + image])
        padded = (height + height % 2, width + width % 2)
        return F.fold(out.mT, padded, 2, stride=2)[..., :height, :width]


class SD15:
    """A class of comfy.supported_models, by name."""


class Unlisted:
    """A class that is not in the table."""


def model(denoiser: str = "unet", config: type = SD15, seed: int = 0) -> Patcher:
    """A ModelPatcher around random weights."""
    torch.manual_seed(seed)
    network = {"unet": UNetModel, "flux": Flux}[denoiser]().requires_grad_(False).double()
    return Patcher(SimpleNamespace(diffusion_model=network, model_config=config()))


def run(
    patcher: Patcher,
    size: tuple[int, int] = (8, 8),
    sigmas: tuple[float, ...] = (4.0, 1.0),
    *,
    images: int = 1,
    cond: Tensor | None = None,
    uncond: Tensor | None = None,
    split: bool = False,
    order: tuple[int, ...] = (1, 0),
    seed: int = 1,
    **kwargs: Any,
) -> Tensor:
    """Sample: the batch has one part for each entry of `order` (0 conditional, 1 unconditional), or one pass for each.

    A text that is shorter than another one in the batch is repeated, as ComfyUI repeats it.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, 4, *size, generator=generator, dtype=torch.float64)
    cond = text(5) if cond is None else cond
    contexts = {0: cond, 1: text(6) if uncond is None else uncond}

    def one_pass(latents, sigma, parts):
        texts = [contexts[part].to(latents) for part in parts]
        length = math.lcm(*(found.shape[1] for found in texts))
        context = torch.cat([found.repeat(images, length // found.shape[1], 1) for found in texts])
        options = {**patcher.model_options["transformer_options"], "cond_or_uncond": list(parts)}
        network = patcher.model.diffusion_model

        def apply(x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **rest):  # noqa: B006
            return network(x, t, c_crossattn, transformer_options, **rest)

        batch = latents.repeat(len(parts), 1, 1, 1)
        level = torch.full((len(batch),), sigma, dtype=torch.float64)
        out = patcher.wrapped("apply_model", apply)(batch, level, None, context, None, options, **kwargs)
        return list(out.chunk(len(parts)))

    def sample():
        latents = x
        for sigma in sigmas:
            if split:
                outs = [one_pass(latents, sigma, (part,))[0] for part in order]
            else:
                outs = one_pass(latents, sigma, order)
            latents = latents - 0.1 * sum(outs) / len(outs)
        return latents

    return patcher.wrapped("outer_sample", sample)()


def text(seed: int, length: int = 7, width: int = 12) -> Tensor:
    """The encoding of a prompt, (1, length, width)."""
    return torch.randn(1, length, width, generator=torch.Generator().manual_seed(seed))
