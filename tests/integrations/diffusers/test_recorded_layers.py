"""Layers are recorded for the generated image and the prompt. Other rows and texts are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch.nn import functional as F

import entropy_attn as ea
from tests.support.shapes_runs import PROMPT, branches, relative, run
from tests.support.tiny_pipelines import PIPELINES


@pytest.mark.parametrize(
    "recorder", [ea.MapRecorder(tokens=(1,)), ea.EntropyRecorder(per_query=True)], ids=["maps", "entropies"]
)
def test_reference_images_are_not_the_image(recorder: Any):
    net = PIPELINES["flux"].make().transformer
    count = 24
    rows = torch.arange(count) // 4
    image_ids = torch.stack([0 * rows, rows, torch.arange(count) % 4], 1).float()
    ids = torch.cat([image_ids, image_ids + torch.tensor([1.0, 0.0, 0.0])])
    torch.manual_seed(0)
    call = {
        "hidden_states": torch.randn(1, 2 * count, net.config.in_channels),
        "encoder_hidden_states": torch.randn(1, 6, 20),
        "pooled_projections": torch.randn(1, 12),
        "timestep": torch.tensor([0.5]),
        "img_ids": ids,
        "txt_ids": torch.zeros(6, 3),
        "guidance": torch.ones(1) if net.config.guidance_embeds else None,
    }
    with ea.apply(net, scale=None, record=recorder, train_size=(12, 8)), torch.no_grad():
        net(**call)
    if isinstance(recorder, ea.MapRecorder):
        assert recorder.maps().shape == (1, 1, 1, 6, 4)
    else:
        assert set(recorder.to_dataframe()["seqlen_q"]) == {count}
        assert {each.shape for each in recorder.spatial(kind="joint").values()} == {(1, 6, 4)}


class Couple(AttnProcessor2_0):
    """Attention to the prompt and to the text of a region, as in regional prompting: two calls in a layer."""

    def __init__(self, region: torch.Tensor, region_first: bool):
        super().__init__()
        self.region, self.region_first = region, region_first

    def __call__(self, attn: Attention, hidden_states: Any, encoder_hidden_states: Any = None, **kwargs: Any) -> Any:
        texts = [encoder_hidden_states, self.region.expand_as(encoder_hidden_states)]
        if self.region_first:
            texts.reverse()
        heads = lambda tokens: tokens.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # noqa: E731
        query = heads(attn.to_q(hidden_states))
        found = [
            F.scaled_dot_product_attention(query, heads(attn.to_k(text)), heads(attn.to_v(text))) for text in texts
        ]
        return attn.to_out[0](torch.stack(found).mean(0).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("region_first", [False, True])
def test_another_text_in_the_same_layer_is_not_the_prompt(shapes: Any, region_first: bool):
    region, _ = shapes.encode_prompt("a yellow square", shapes.device, 1, False)
    original = dict(shapes.unet.attn_processors)
    last = [name for name in original if name.startswith("up_blocks") and "attn2" in name][-1]
    options = {"num_inference_steps": 1, "guidance_scale": 1.0}

    def recorded() -> Any:
        recorder, entropies = ea.MapRecorder("circle"), ea.EntropyRecorder()
        with ea.apply(shapes, scale=None, record=[recorder, entropies]):
            run(shapes, PROMPT, **options)
        return recorder, entropies

    plain, entropies = recorded()
    try:
        shapes.unet.set_attn_processor({**original, last: Couple(region, region_first)})
        found, others = recorded()
    finally:
        shapes.unet.set_attn_processor(original)
    # the inputs of the last cross-attention layer are unchanged, so its map and those of all others are the same
    torch.testing.assert_close(found.maps(), plain.maps())
    layer = last.removesuffix(".processor")
    tables = [each.to_dataframe().query(f"layer == '{layer}'")["mean"].to_numpy() for each in (entropies, others)]
    assert len(tables[0]) == len(tables[1]) and tables[1] == pytest.approx(tables[0], abs=1e-5)


class Halves(AttnProcessor2_0):
    """Self-attention in two calls, as for large images: it is unknown which rows belong to which call."""

    def __call__(self, attn: Attention, hidden_states: Any, encoder_hidden_states: Any = None, **kwargs: Any) -> Any:
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        heads = lambda tokens: tokens.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # noqa: E731
        key, value = heads(attn.to_k(text)), heads(attn.to_v(text))
        found = [
            F.scaled_dot_product_attention(query, key, value)
            for query in heads(attn.to_q(hidden_states)).chunk(2, dim=-2)
        ]
        return attn.to_out[0](torch.cat(found, dim=-2).transpose(1, 2).flatten(2))


class Windows(AttnProcessor2_0):
    """Self-attention within each half of an image; the halves are rows of the batch, first halves first."""

    def __call__(self, attn: Attention, hidden_states: Any, encoder_hidden_states: Any = None, **kwargs: Any) -> Any:
        if encoder_hidden_states is not None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, **kwargs)
        return torch.cat(super().__call__(attn, torch.cat(hidden_states.chunk(2, 1)), **kwargs).chunk(2), 1)


class HeadsAsRows(AttnProcessor2_0):
    def __call__(self, attn: Attention, hidden_states: Any, encoder_hidden_states: Any = None, **kwargs: Any) -> Any:
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        tokens = (attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text))
        found = F.scaled_dot_product_attention(*map(attn.head_to_batch_dim, tokens))
        return attn.to_out[0](attn.batch_to_head_dim(found))


class Merged(AttnProcessor2_0):
    """Neighboring tokens are merged before attention."""

    def __call__(self, attn: Attention, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        merged = hidden_states.unflatten(1, (-1, 2)).mean(2)
        return super().__call__(attn, merged, *args, **kwargs).repeat_interleave(2, 1)


@pytest.mark.parametrize(
    "processor, recorder, reason",
    [
        (Windows(), ea.EntropyRecorder(), r"attn1'.* 4 rows and the denoiser's batch 2.*branches=\('all',\)"),
        (Windows(), ea.EntropyRecorder(branches=("uncond", "cond")), r"attn1'.* 4 rows and the denoiser's batch 2"),
        (HeadsAsRows(), ea.EntropyRecorder(), r"query of shape \(8, 256, 16\).*apply without record"),
        (Merged(), ea.MapRecorder(3), r"one query for each token of the image: there were 8, 32, 128 queries"),
    ],
    ids=["windows", "stated", "heads", "merged"],
)
def test_rows_that_are_not_those_of_the_batch_are_refused_at_the_first_call(
    shapes: Any, processor: Any, recorder: Any, reason: str
):
    original, steps = dict(shapes.unet.attn_processors), []
    options = {"callback_on_step_end": lambda pipe, step, t, kwargs: steps.append(step) or kwargs}
    try:
        shapes.unet.set_attn_processor(dict.fromkeys(original, processor))
        with ea.apply(shapes, scale=None, record=recorder), pytest.raises((ValueError, RuntimeError), match=reason):
            run(shapes, PROMPT, **options)
        assert not steps and "encode_prompt" not in shapes.__dict__
        with ea.apply(shapes):
            run(shapes, PROMPT, num_inference_steps=1)
        if isinstance(processor, Windows):
            one = ea.EntropyRecorder(branches=("all",))
            with ea.apply(shapes, scale=None, record=one):
                run(shapes, PROMPT, num_inference_steps=1)
            assert branches(one) == {0: {"all"}}
    finally:
        shapes.unet.set_attn_processor(original)


@pytest.mark.parametrize("guidance, names", [(1.0, ("cond", "perturbed")), (4.0, ("uncond", "cond", "perturbed"))])
def test_a_part_of_the_batch_is_refused(shapes: Any, guidance: float, names: tuple[str, ...]):
    """Perturbed attention guidance calls attention for the other rows only, and their number fits the names, too."""
    pipe = relative(shapes, "StableDiffusionPAGPipeline", pag_applied_layers="mid")
    options = {"guidance_scale": guidance, "pag_scale": 3.0, "num_images_per_prompt": len(names)}
    original = dict(pipe.unet.attn_processors)
    try:
        with ea.apply(pipe, scale=None, record=ea.EntropyRecorder(branches=names)):
            with pytest.raises(RuntimeError, match=r"mid_block.*rows and the denoiser's batch"):
                run(pipe, PROMPT, **options)
    finally:
        pipe.unet.set_attn_processor(original)


def test_a_text_of_another_length_is_refused_at_the_first_call(shapes: Any):
    """Long prompts are passed as embeddings of several chunks, in which the positions of words are not known."""
    cond, uncond = (torch.cat([each, each], 1) for each in shapes.encode_prompt([PROMPT], shapes.device, 1, True))
    steps: list[int] = []
    options = {"callback_on_step_end": lambda pipe, step, t, kwargs: steps.append(step) or kwargs}
    with ea.apply(shapes, scale=None, record=ea.MapRecorder("circle", prompt=PROMPT)):
        with pytest.raises(ValueError, match="the 77 positions of the text; they had 154 keys: give positions"):
            run(shapes, prompt_embeds=cond, negative_prompt_embeds=uncond, **options)
    assert not steps
    with ea.apply(shapes, scale=None, record=(recorder := ea.MapRecorder((3, 80)))):
        run(shapes, prompt_embeds=cond, negative_prompt_embeds=uncond)
    torch.testing.assert_close(recorder.maps()[:, :, 0], recorder.maps()[:, :, 1])  # the same text twice


@pytest.mark.parametrize("kind", ["attn1", "attn2"])
def test_a_layer_in_several_calls_is_refused(shapes: Any, kind: str):
    original = dict(shapes.unet.attn_processors)
    try:
        shapes.unet.set_attn_processor({name: Halves() if kind in name else each for name, each in original.items()})
        with ea.apply(shapes, scale=None, record=ea.EntropyRecorder()):
            with pytest.raises(RuntimeError, match=rf"{kind}.*Halves.*several"):
                run(shapes, PROMPT)
        with ea.apply(shapes):
            run(shapes, PROMPT)  # only recorders refuse it
    finally:
        shapes.unet.set_attn_processor(original)
