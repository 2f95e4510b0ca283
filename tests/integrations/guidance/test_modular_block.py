"""A guidance as a block of a modular SDXL pipeline, against `attach` on the pipeline that is not modular."""

from __future__ import annotations

import warnings

import pytest
import torch
from diffusers import (
    ClassifierFreeGuidance,
    FluxKontextAutoBlocks,
    ModularPipelineBlocks,
    PNDMScheduler,
    StableDiffusionXLAutoBlocks,
)
from diffusers.modular_pipelines import LoopSequentialPipelineBlocks
from diffusers.modular_pipelines.stable_diffusion_xl.denoise import StableDiffusionXLDenoiseStep

import entropy_attn as ea
from entropy_attn.guidance import CONFORM, JEDI, TSAM, AttendAndExcite, Custom, SynGen
from entropy_attn.scale import Constant
from tests.integrations.guidance.test_guided_pipelines import add_ip_adapter
from tests.support.guided_pipes import SCHEDULERS, draw, footprint, make_scheduler, make_xl

OUTPUTS = ["latents", "guidance_losses", "guidance_maps"]
METHODS = [
    TSAM(alpha=10.0, refine_at=(1,), refine_iters=2),
    TSAM(alpha=10.0, variant="paper", steps=(0, 2), map_size=(16, 24)),
    AttendAndExcite(tokens=("ab", "d"), alpha=10.0),
    CONFORM(groups=[("ab", "c"), ("d",)], alpha=10.0),
    SynGen(pairs=[("ab", "c")], alpha=10.0),
    JEDI(groups=[("ab", "c"), ("d",)], layers="up_blocks"),
]


def modular(pipe, block: ea.GuidanceBlock | None = None, guidance_scale: float = 5.0, blocks=None):
    """A modular pipeline with the components of a pipeline, so that both have the same weights."""
    blocks = StableDiffusionXLAutoBlocks() if blocks is None else blocks
    if block is not None:
        assert block.insert_into(blocks) is blocks
    made = blocks.init_pipeline()
    parts = {name: part for name, part in pipe.components.items() if name in made.component_names and part is not None}
    made.update_components(**parts, guider=ClassifierFreeGuidance(guidance_scale=guidance_scale))
    for each in loops_of(made._blocks):
        each.set_progress_bar_config(disable=True)
    return made


def loops_of(blocks) -> list[LoopSequentialPipelineBlocks]:
    found = [blocks] if isinstance(blocks, LoopSequentialPipelineBlocks) else []
    return found + [loop for each in blocks.sub_blocks.values() for loop in loops_of(each)]


def generate(made, prompt="ab c d", steps: int = 3, seed: int = 4, output="latents", **options):
    generator = torch.Generator().manual_seed(seed)
    options = {"height": 32, "width": 48, "num_inference_steps": steps, "generator": generator, **options}
    return made(prompt=prompt, output=output, **options)


@pytest.mark.parametrize("guidance", METHODS, ids=lambda guidance: type(guidance).__name__)
def test_images_are_those_of_attach(guidance):
    """Without classifier-free guidance both call the UNet alike, so the latents are the same to the last bit."""
    pipe = make_xl()
    with ea.attach(pipe, guidance) as handle:
        expected = draw(pipe, guidance_scale=1.0)
    found = generate(modular(pipe, ea.GuidanceBlock(guidance), 1.0), output=OUTPUTS)
    assert torch.equal(found["latents"], expected)
    assert not torch.equal(draw(pipe, guidance_scale=1.0), expected)
    assert [step for step, _ in found["guidance_losses"]] == [step for step, _ in handle.losses]
    for (_, ours), (_, theirs) in zip(found["guidance_losses"], handle.losses, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(found["guidance_maps"], handle.maps)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler(scheduler):
    """With classifier-free guidance sums are rounded apart: one call of the UNet for each branch, or one for both."""
    pipe = make_xl()
    # PNDM makes one call more than there are steps, and the guider of diffusers does not guide that one.
    strength = 1.0 if scheduler is PNDMScheduler else 5.0
    pipe.scheduler = make_scheduler(pipe, scheduler)
    guidance = TSAM(alpha=3000.0)
    with ea.attach(pipe, guidance):
        expected = draw(pipe, guidance_scale=strength)
    moved = (draw(pipe, guidance_scale=strength) - expected).abs().max()
    found = generate(modular(pipe, ea.GuidanceBlock(guidance), strength))
    assert (found - expected).abs().max() < 1e-2 * moved and moved > 1e-3 * expected.abs().max()


def test_alpha_zero_gives_exactly_the_unguided_image():
    pipe = make_xl()
    found = generate(modular(pipe, ea.GuidanceBlock(TSAM(alpha=0.0))), output=["latents", "guidance_losses"])
    assert torch.equal(found["latents"], generate(modular(pipe)))
    assert len(found["guidance_losses"]) == 3 and all(loss > 0 for _, loss in found["guidance_losses"])


@pytest.mark.parametrize(("prompts", "images"), [(["ab c d", "e f g"], 1), ("ab c d", 2)])
def test_several_images(prompts, images):
    """Not both at once, where diffusers mixes pooled embeddings: docs/upstream/diffusers-modular-pooled.md."""
    pipe, guidance = make_xl(), TSAM(alpha=10.0)
    with ea.attach(pipe, guidance) as handle:
        expected = draw(pipe, prompts, guidance_scale=1.0, num_images_per_prompt=images)
    made = modular(pipe, ea.GuidanceBlock(guidance), 1.0)
    found = generate(made, prompts, num_images_per_prompt=images, output=OUTPUTS)
    assert torch.equal(found["latents"], expected)
    assert torch.equal(found["guidance_losses"][0][1], handle.losses[0][1]) and len(handle.losses[0][1]) == 2


def test_each_image_is_guided_by_its_own_prompt():
    made = modular(make_xl(), ea.GuidanceBlock(TSAM(alpha=0.0, steps=(0,))), 1.0)
    ((_, losses),) = generate(made, ["ab c d", "e f g"], num_images_per_prompt=2, output="guidance_losses")
    # The losses of this model depend on the text far more than on the noise.
    assert (losses[0] - losses[1]).abs() < 0.01 < 0.1 < (losses[1] - losses[2]).abs()
    assert (losses[2] - losses[3]).abs() < 0.01


def test_a_call_may_bring_its_own_guidance():
    pipe = make_xl()
    made, strong = modular(pipe, ea.GuidanceBlock(), 1.0), Custom(function=lambda maps, prompt: maps[..., 1].sum())
    with ea.attach(pipe, strong):
        expected = draw(pipe, guidance_scale=1.0)
    assert torch.equal(generate(made, guidance=strong), expected)
    assert torch.equal(generate(made, guidance=strong.function), expected)  # a plain function is a `Custom`
    assert not torch.equal(generate(made), expected)
    with pytest.raises(TypeError, match="guidance: expected a Guidance"):
        generate(made, guidance="tsam")


def test_embeddings_need_the_text():
    """Blocks without a text encoder get the prompt's words as the input `prompt`."""
    pipe = make_xl()
    expected = generate(modular(pipe, ea.GuidanceBlock(TSAM(alpha=10.0))))
    keys = "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"
    embeds = dict(zip(keys, pipe.encode_prompt("ab c d", device="cpu"), strict=True))
    blocks = StableDiffusionXLAutoBlocks()
    blocks.sub_blocks.pop("text_encoder")
    made = modular(pipe, ea.GuidanceBlock(TSAM(alpha=10.0)), blocks=blocks)
    assert torch.equal(generate(made, **embeds), expected)
    with pytest.raises(ValueError, match="prompt: expected the text of the embeddings"):
        generate(made, None, **embeds)
    with pytest.raises(ValueError, match="the prompt embeddings have 14 positions"):
        generate(made, **{key: torch.cat([each] * 2, 1) if each.dim() == 3 else each for key, each in embeds.items()})


def test_with_an_ip_adapter():
    pipe = make_xl()
    add_ip_adapter(pipe.unet)
    embeds = torch.randn(1, 1, 16, generator=torch.Generator().manual_seed(8))
    with ea.attach(pipe, TSAM(alpha=10.0)):
        expected = draw(pipe, guidance_scale=1.0, ip_adapter_image_embeds=[embeds])
    found = generate(modular(pipe, ea.GuidanceBlock(TSAM(alpha=10.0)), 1.0), ip_adapter_embeds=[embeds])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("channels", [4, 9])
def test_inpainting(channels):
    """A UNet of 9 channels gets the mask and the masked image with the latents, in the guided pass too."""
    from PIL import Image

    pipe = make_xl()
    if channels == 9:
        from diffusers import UNet2DConditionModel

        torch.manual_seed(0)
        pipe.register_modules(unet=UNet2DConditionModel(**{**pipe.unet.config, "in_channels": 9}).eval())
    picture, mask = Image.new("RGB", (48, 32), "red"), Image.new("L", (48, 32), 0)
    mask.paste(255, (0, 0, 24, 32))
    options = {"image": picture, "mask_image": mask, "strength": 0.99, "steps": 4}
    plain = generate(modular(pipe), **options)
    made = modular(pipe, ea.GuidanceBlock(TSAM(alpha=10.0)))
    found = generate(made, **options, output=OUTPUTS)
    assert len(found["guidance_losses"]) >= 3 and not torch.equal(found["latents"], plain)
    torch.testing.assert_close(found["guidance_maps"].sum(-1), torch.ones(found["guidance_maps"].shape[:-1]))


def test_the_guided_pass_has_the_scale_of_an_apply():
    pipe = make_xl()
    made = modular(pipe, ea.GuidanceBlock(TSAM(alpha=0.0, steps=(0,))))
    (plain,) = generate(made, output="guidance_losses")
    with ea.apply(made.unet, scale=Constant(3.0), layers="cross"):
        (sharp,) = generate(made, output="guidance_losses")
    assert (plain[1] - sharp[1]).abs().max() > 1e-5
    with ea.apply(pipe, scale=Constant(3.0), layers="cross"), ea.attach(pipe, TSAM(alpha=0.0, steps=(0,))) as handle:
        draw(pipe)
    torch.testing.assert_close(sharp[1], handle.losses[0][1], rtol=1e-6, atol=0)


class Stop(Exception):
    pass


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
def test_nothing_is_left_behind(error):
    pipe = make_xl()
    made, plain = modular(pipe, ea.GuidanceBlock()), modular(pipe)
    before, expected = footprint(pipe), generate(plain)

    def stop(maps, prompt):
        raise error

    with pytest.raises(error):
        generate(made, guidance=stop)
    assert footprint(pipe) == before
    guided = generate(made)
    assert not torch.equal(guided, expected) and footprint(pipe) == before
    assert torch.equal(generate(plain), expected) and torch.equal(generate(made), guided)


def test_a_short_prompt_gives_a_warning_and_no_guidance():
    pipe = make_xl()
    with pytest.warns(UserWarning, match="has too few words to be guided"):
        found = generate(modular(pipe, ea.GuidanceBlock()), "a")
    assert torch.equal(found, generate(modular(pipe), "a"))


def test_no_warning_in_a_normal_generation():
    made = modular(make_xl(), ea.GuidanceBlock())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        generate(made)


# -- blocks -----------------------------------------------------------------------------------------------------------


def test_it_is_first_in_every_loop_of_the_blocks():
    blocks = ea.GuidanceBlock().insert_into(StableDiffusionXLAutoBlocks())
    loops = loops_of(blocks)
    assert len(loops) == 4 and all(next(iter(loop.sub_blocks)) == "guidance" for loop in loops)
    assert {"guidance", "prompt"} <= set(blocks.input_names)
    assert {"latents", "guidance_losses", "guidance_maps"} <= set(loops[0].intermediate_output_names)
    assert "GuidanceBlock" in repr(loops[0]) and "TSAM" in ea.GuidanceBlock().description
    alone = ea.GuidanceBlock().insert_into(StableDiffusionXLDenoiseStep())
    assert list(alone.sub_blocks) == ["guidance", "before_denoiser", "denoiser", "after_denoiser"]


def test_the_blocks_of_a_pipeline_are_a_copy():
    pipe = make_xl()
    plain = modular(pipe)
    guided = modular(pipe, ea.GuidanceBlock(), blocks=plain.blocks)
    assert all("guidance" not in loop.sub_blocks for loop in loops_of(plain._blocks))
    assert not torch.equal(generate(plain), generate(guided))


def test_text_encoders_are_expected_where_they_are_needed():
    names = {spec.name for spec in ea.GuidanceBlock().expected_components}
    assert names == {"unet", "scheduler", "tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"}
    others = {spec.name for spec in ea.GuidanceBlock(AttendAndExcite(tokens="ab")).expected_components}
    assert names - others == {"text_encoder", "text_encoder_2"}


def test_it_can_be_shared_as_a_folder(tmp_path):
    (tmp_path / "block.py").write_text("from entropy_attn import GuidanceBlock\n")
    (tmp_path / "modular_config.json").write_text(
        '{"_class_name": "GuidanceBlock", "auto_map": {"ModularPipelineBlocks": "block.GuidanceBlock"}}'
    )
    block = ModularPipelineBlocks.from_pretrained(str(tmp_path), trust_remote_code=True, guidance=TSAM(alpha=0.0))
    assert isinstance(block, ea.GuidanceBlock) and block.guidance == TSAM(alpha=0.0)


def test_refusals():
    block = ea.GuidanceBlock()
    for wrong in (None, StableDiffusionXLAutoBlocks, modular(make_xl())):
        with pytest.raises(TypeError, match="blocks: expected ModularPipelineBlocks"):
            block.insert_into(wrong)
    with pytest.raises(ValueError, match=r"at least one .* of stable-diffusion-xl or .* or flux, got FluxKontextDen"):
        block.insert_into(FluxKontextAutoBlocks())
    with pytest.raises(ValueError, match="got GuidanceBlock"):
        block.insert_into(ea.GuidanceBlock())
    blocks = block.insert_into(StableDiffusionXLAutoBlocks())
    with pytest.raises(ValueError, match="expected none that are guided"):
        ea.GuidanceBlock().insert_into(blocks)
    assert all(len(loop.sub_blocks) == 4 for loop in loops_of(blocks))


def test_a_loop_with_a_controlnet_is_refused():
    from diffusers import ControlNetModel
    from PIL import Image

    pipe = make_xl()
    made = modular(pipe, ea.GuidanceBlock())
    made.update_components(controlnet=ControlNetModel.from_unet(pipe.unet))
    with pytest.raises(ValueError, match="control_image: expected None with a GuidanceBlock"):
        generate(made, control_image=Image.new("RGB", (48, 32)))
