"""A guidance as a block of modular pipelines of Stable Diffusion 3 and Flux, against `attach` on the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import ClassifierFreeGuidance, FluxAutoBlocks, StableDiffusion3AutoBlocks

import entropy_attn as ea
from entropy_attn.guidance import JEDI, TSAM, AttendAndExcite, Custom
from entropy_attn.scale import Constant
from tests.integrations.guidance.test_modular_block import OUTPUTS, loops_of
from tests.integrations.guidance.test_transformers import FLUX, PROMPT, SD3, SETTINGS, footprint
from tests.recorders.test_joint_maps import generate

METHODS = [
    TSAM(alpha=10.0, refine_at=(1,), refine_iters=2),
    AttendAndExcite(tokens=("ab", "d"), alpha=10.0, layers=r"transformer_blocks\.0\."),
    JEDI(groups=[("ab", "c"), ("d",)]),
]


def modular(pipe: Any, setting: tuple, block: ea.GuidanceBlock | None = None, strength: float = 1.0) -> Any:
    """A modular pipeline with the components of a pipeline, so that both have the same weights."""
    blocks = StableDiffusion3AutoBlocks() if setting is SD3 else FluxAutoBlocks()
    blocks.sub_blocks.pop("decode")  # these pipelines have no autoencoder
    if block is not None:
        assert block.insert_into(blocks) is blocks
    made = blocks.init_pipeline()
    parts = {name: part for name, part in pipe.components.items() if name in made.component_names and part is not None}
    if setting is SD3:
        parts["guider"] = ClassifierFreeGuidance(guidance_scale=strength)
    made.update_components(**parts)
    for each in loops_of(made._blocks):
        each.set_progress_bar_config(disable=True)
    return made


def run(made: Any, setting: tuple, prompt: Any = PROMPT, output: Any = "latents", **options: Any) -> Any:
    given = {name: value for name, value in setting[1].items() if setting is FLUX or name != "guidance_scale"}
    generator = torch.Generator().manual_seed(3)
    return made(prompt=prompt, output=output, generator=generator, num_inference_steps=2, **{**given, **options})


def unpacked(pipe: Any, setting: tuple, latents: torch.Tensor) -> torch.Tensor:
    """As the modular pipelines return them."""
    if setting is SD3:
        return latents
    return pipe._unpack_latents(latents, setting[1]["height"], setting[1]["width"], pipe.vae_scale_factor)


def options_of(setting: tuple) -> dict[str, Any]:
    return {"guidance_scale": 1.0} if setting is SD3 else {}  # without classifier-free guidance both call alike


@SETTINGS
@pytest.mark.parametrize("guidance", METHODS, ids=lambda guidance: type(guidance).__name__)
def test_images_are_those_of_attach(setting, guidance):
    pipe = setting[0]()
    plain = generate(pipe, PROMPT, setting[1], **options_of(setting))
    with ea.attach(pipe, guidance) as handle:
        expected = generate(pipe, PROMPT, setting[1], **options_of(setting))
    found = run(modular(pipe, setting, ea.GuidanceBlock(guidance)), setting, output=OUTPUTS)
    assert torch.equal(found["latents"], unpacked(pipe, setting, expected)) and not torch.equal(plain, expected)
    assert [step for step, _ in found["guidance_losses"]] == [step for step, _ in handle.losses]
    for (_, ours), (_, theirs) in zip(found["guidance_losses"], handle.losses, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(found["guidance_maps"], handle.maps)


@SETTINGS
def test_alpha_zero_is_unguided_and_nothing_is_left_behind(setting):
    pipe = setting[0]()
    expected = run(modular(pipe, setting, strength=4.0), setting)
    before = footprint(pipe)
    found = run(modular(pipe, setting, ea.GuidanceBlock(TSAM(alpha=0.0)), 4.0), setting, output=OUTPUTS)
    assert torch.equal(found["latents"], expected) and len(found["guidance_losses"]) == 2
    assert footprint(pipe) == before


@SETTINGS
def test_a_call_may_bring_its_own_guidance_and_an_apply_its_scale(setting):
    """In Flux `guidance` is the embedded scale, so the input has another name there."""
    pipe, name = setting[0](), "guidance" if setting is SD3 else "attention_guidance"
    made, strong = modular(pipe, setting, ea.GuidanceBlock()), Custom(function=lambda maps, _: maps[..., 1].sum())
    assert name in made.blocks.input_names
    with ea.attach(pipe, strong):
        expected = generate(pipe, PROMPT, setting[1], **options_of(setting))
    expected = unpacked(pipe, setting, expected)
    assert torch.equal(run(made, setting, **{name: strong}), expected)
    assert torch.equal(run(made, setting, **{name: strong.function}), expected)
    with pytest.raises(TypeError, match="guidance: expected a Guidance"):
        run(made, setting, **{name: "tsam"})
    plain = run(made, setting, output="guidance_maps")
    with ea.apply(made.transformer, scale=Constant(2.0)):
        assert not torch.allclose(run(made, setting, output="guidance_maps"), plain)


def test_the_text_of_t5_may_be_another_one():
    pipe = SD3[0]()
    with ea.attach(pipe, AttendAndExcite(tokens=("cd",))):
        expected = generate(pipe, "ab", SD3[1], prompt_3="a cd", guidance_scale=1.0)
    made = modular(pipe, SD3, ea.GuidanceBlock(AttendAndExcite(tokens=("cd",))))
    assert torch.equal(run(made, SD3, "ab", prompt_3="a cd"), expected)


@SETTINGS
def test_it_is_first_in_every_loop(setting):
    blocks = ea.GuidanceBlock().insert_into(StableDiffusion3AutoBlocks() if setting is SD3 else FluxAutoBlocks())
    loops = loops_of(blocks)
    assert loops and all(next(iter(loop.sub_blocks)) == "guidance" for loop in loops)
    for loop in loops_of(type(blocks)()):  # the blocks of diffusers' classes are shared, and stay as they were
        assert list(loop.sub_blocks) == ["denoiser", "after_denoiser"]
    block = loops[0].sub_blocks["guidance"]
    assert isinstance(block, ea.GuidanceBlock) and block.model_name == loops[0].model_name
    assert "transformer" in block.description and "TSAM" in block.description
    names = {spec.name for spec in block.expected_components}
    fewer = ea.GuidanceBlock(JEDI(groups=[("a",)])).insert_into(type(loops[0])()).sub_blocks["guidance"]
    left = {spec.name for spec in fewer.expected_components}
    assert names - left == ({"text_encoder", "text_encoder_2"} if setting is SD3 else {"text_encoder_2"})
    with pytest.raises(ValueError, match="expected none that are guided"):
        ea.GuidanceBlock().insert_into(blocks)
