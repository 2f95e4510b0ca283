"""Which rows of a batch are which branch, and which calls are one step, on pipelines that change their arrangement."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback
from PIL import Image

import entropy_attn as ea
from entropy_attn.guidance import TSAM, attach
from tests.support.shapes_runs import ALONE, BOTH, PROMPT, branches, relative, run
from tests.support.tiny_pipelines import PIPELINES

# -- guidance for a part of the steps ---------------------------------------------------------------------------------


def test_guidance_is_cut_off(shapes: Any):
    cut = {
        "callback_on_step_end": SDCFGCutoffCallback(cutoff_step_ratio=0.5),
        "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
        "num_inference_steps": 4,
    }
    entropies, maps = ea.EntropyRecorder(), ea.MapRecorder("circle")
    steps = ea.MapRecorder("circle", steps=range(4), all_branches=True)
    with ea.apply(shapes, scale=None, record=[entropies, maps, steps]):
        run(shapes, PROMPT, **cut)
    assert branches(entropies) == {0: BOTH, 1: BOTH, 2: BOTH, 3: ALONE}
    assert maps.branch_names == ("cond",)
    cond = steps.branch_names.index("cond")
    apart = torch.stack([steps.maps(step)[cond] for step in range(4)])
    torch.testing.assert_close(maps.maps()[0], apart.mean(0))
    assert steps.maps(3)[1 - cond].isnan().all(), "there is no such branch at this step"


def cut_later(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    if step == 0:
        pipe._guidance_scale = 0.0
        return {name: value[-len(value) // 2 :] for name, value in kwargs.items()}
    return kwargs


@pytest.mark.parametrize("name", ["sd3", "sdxl"])
def test_guidance_is_cut_off_in_other_pipelines(name: str):
    inputs = ["prompt_embeds", "pooled_prompt_embeds"]
    if name == "sdxl":
        from tests.support.tiny_models import make_pipe, sample

        pipe, inputs = make_pipe("sdxl"), ["prompt_embeds", "add_text_embeds", "add_time_ids"]
        call = {"callback_on_step_end": cut_later, "callback_on_step_end_tensor_inputs": inputs}
        generate = lambda: sample(pipe, steps=3, **call)  # noqa: E731
    else:
        pipe = PIPELINES["sd3"].make()
        call = {"callback_on_step_end": cut_later, "callback_on_step_end_tensor_inputs": inputs}
        generate = lambda: PIPELINES["sd3"].run(pipe, **call)  # noqa: E731
    recorder = ea.EntropyRecorder()
    with ea.apply(pipe, scale=None, record=recorder):
        generate()
    found = branches(recorder)
    assert found.pop(0) == BOTH and all(each == ALONE for each in found.values()) and found


def test_guidance_begins_later(shapes: Any):
    """The pipeline encodes both texts, but does not use one of them in the first step."""

    class Late(diffusers.StableDiffusionPipeline):
        def __call__(self, prompt: str, steps: int = 3) -> None:
            cond, uncond = self.encode_prompt(prompt, self.device, 1, True)
            self.scheduler.set_timesteps(steps)
            latents = torch.zeros(1, 4, 8, 8)
            for number, t in enumerate(self.scheduler.timesteps):
                parts = [cond] if number == 0 else [uncond, cond]
                self.unet(torch.cat([latents] * len(parts)), t, encoder_hidden_states=torch.cat(parts))

    pipe, recorder = Late(**shapes.components, requires_safety_checker=False), ea.EntropyRecorder()
    with ea.apply(pipe, scale=None, record=recorder), torch.no_grad():
        pipe(PROMPT)
    assert branches(recorder) == {0: ALONE, 1: BOTH, 2: BOTH}


# -- several calls in a step ------------------------------------------------------------------------------------------


def test_skip_layer_guidance_makes_an_additional_call():
    tiny = PIPELINES["sd3"]
    pipe, steps, recorder = tiny.make(), set(), ea.EntropyRecorder()
    skip = {"skip_guidance_layers": [0], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    with ea.apply(pipe, scale=lambda info: steps.add(info.step)):
        tiny.run(pipe, **skip)
    assert steps == {0, 1}
    with ea.apply(pipe, scale=None, record=recorder):
        tiny.run(pipe, **skip)
    table = recorder.to_dataframe()
    assert branches(recorder) == {0: BOTH, 1: BOTH}
    assert set(table.groupby(["layer", "step", "branch", "head"]).size()) == {1}
    with ea.apply(pipe, scale=None, record=(plain := ea.EntropyRecorder())):
        tiny.run(pipe)
    first, other = (each.to_dataframe().query("step == 0")["mean"].to_numpy() for each in (recorder, plain))
    assert (first == other).all(), "the call that skips a layer is not recorded"


def test_views_of_a_panorama_are_one_step(shapes: Any):
    pipe = relative(shapes, "StableDiffusionPanoramaPipeline")
    found, stated = ea.MapRecorder("circle"), ea.MapRecorder("circle", branches=("uncond", "cond"))
    with ea.apply(pipe, scale=None, record=[found, stated]):
        run(pipe, PROMPT, height=64, width=320)
    assert found.branch_names == ("cond",)
    assert torch.equal(found.maps(), stated.maps())
    steps: list[int] = []
    with ea.apply(pipe, scale=lambda info: steps.append(info.step), layers="mid_block.*attn1$"):
        run(pipe, PROMPT, height=64, width=640, num_inference_steps=3)
    assert steps == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    with pytest.raises(ValueError, match=r"StableDiffusionPanoramaPipeline.*views"):
        attach(pipe, TSAM(alpha=5.0))


def test_other_passes_at_the_same_step_are_refused(shapes: Any):
    """Self-attention guidance calls the UNet again with blurred latents."""

    class Twice(diffusers.StableDiffusionPipeline):
        def __call__(self, prompt: str) -> None:
            cond, _ = self.encode_prompt(prompt, self.device, 1, False)
            self.scheduler.set_timesteps(2)
            for t in self.scheduler.timesteps:
                for latents in (torch.zeros(1, 4, 8, 8), torch.ones(1, 4, 8, 8)):
                    self.unet(latents, t, encoder_hidden_states=cond)

    pipe = Twice(**shapes.components, requires_safety_checker=False)
    with ea.apply(pipe, scale=None, record=ea.EntropyRecorder()), torch.no_grad():
        with pytest.raises(
            ValueError, match=r"Twice calls its denoiser several times a step.*EntropyRecorder\(branches"
        ):
            pipe(PROMPT)
    recorder = ea.EntropyRecorder(branches=("cond",))
    with ea.apply(pipe, scale=None, record=recorder), torch.no_grad():
        pipe(PROMPT)
    assert branches(recorder) == {0: ALONE, 1: ALONE}


# -- rows with other texts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["a blue square", "a yellow square"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_source_prompt_of_cycle_diffusion_is_refused(shapes: Any, prompt: str, guidance: float):
    pipe = relative(shapes, "CycleDiffusionPipeline", "image_encoder")
    options = {
        "image": Image.new("RGB", (64, 64), "red"),
        "strength": 0.5,
        "num_inference_steps": 4,
        "eta": 0.1,
        "source_guidance_scale": 1.0,
        "guidance_scale": guidance,
        "source_prompt": "a red circle and a green square",
    }
    for recorder in (ea.MapRecorder(prompt.split()[1]), ea.EntropyRecorder()):
        with ea.apply(pipe, scale=None, record=recorder):
            with pytest.raises(ValueError, match=r"source_prompt.*Recorder\(branches="):
                run(pipe, prompt=prompt, **options)
    assert len(recorder) == 0
    recorder = ea.MapRecorder("square", branches=("source", "cond") if guidance == 1.0 else ("a", "b", "c", "cond"))
    with ea.apply(pipe, scale=None, record=recorder):
        run(pipe, prompt=prompt, **options)
    assert recorder.positions == ((3,),)


def test_semantic_guidance_is_refused(shapes: Any):
    pipe = relative(shapes, "SemanticStableDiffusionPipeline", "image_encoder")
    edit = {"editing_prompt": ["a green circle"], "edit_warmup_steps": 0, "edit_guidance_scale": 3.0}
    with ea.apply(pipe, scale=None, record=ea.EntropyRecorder()):
        with pytest.raises(
            ValueError, match=r"SemanticStableDiffusionPipeline does not show.*EntropyRecorder\(branches"
        ):
            run(pipe, PROMPT, height=64, width=64, **edit)
    recorder = ea.EntropyRecorder(branches=("uncond", "cond", "edit"))
    with ea.apply(pipe, scale=None, record=recorder):
        run(pipe, PROMPT, height=64, width=64, **edit)
    assert branches(recorder) == {0: {*BOTH, "edit"}, 1: {*BOTH, "edit"}}


def test_the_two_texts_of_an_edit_mask_are_refused(shapes: Any):
    inverse = diffusers.DDIMInverseScheduler.from_config(shapes.scheduler.config)
    pipe = relative(shapes, "StableDiffusionDiffEditPipeline", "image_encoder", inverse_scheduler=inverse)
    image = Image.new("RGB", (64, 64), "red")
    with ea.apply(pipe, scale=None, record=ea.EntropyRecorder()):
        with pytest.raises(ValueError, match=r"(source|target)_prompt.*EntropyRecorder\(branches"):
            pipe.generate_mask(
                image=image, source_prompt="a red circle", target_prompt="a blue circle", num_inference_steps=2
            )


def test_stated_branches_are_compared_with_the_texts(shapes: Any):
    with ea.apply(shapes, scale=None, record=ea.MapRecorder("circle", branches=("cond", "uncond"))):
        with pytest.raises(ValueError, match=r"branches=\('cond', 'uncond'\): row 0 .* is 'uncond'"):
            run(shapes, PROMPT)


def test_rows_are_identified_by_their_texts(shapes: Any):
    """In any order of rows: here the conditional rows are between the others, and in another order."""
    prompts = ["a red circle", "a blue square"]

    class Mixed(diffusers.StableDiffusionPipeline):
        def __call__(self, prompt: list[str], mixed: bool) -> None:
            cond, uncond = self.encode_prompt(prompt, self.device, 1, True)
            self.scheduler.set_timesteps(2)
            latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
            order = [3, 0, 2, 1] if mixed else [0, 1, 2, 3]
            texts, samples = torch.cat([uncond, cond])[order], torch.cat([latents, latents])[order]
            for t in self.scheduler.timesteps:
                self.unet(samples, t, encoder_hidden_states=texts)

    pipe = Mixed(**shapes.components, requires_safety_checker=False)
    found = []
    for mixed in (False, True):
        recorder = ea.MapRecorder(3)
        with ea.apply(pipe, scale=None, record=recorder), torch.no_grad():
            pipe(prompts, mixed)
        assert recorder.branch_names == ("cond",)
        found.append(recorder.maps())
    torch.testing.assert_close(found[1], found[0])


def test_several_images_per_prompt(shapes: Any):
    recorder = ea.MapRecorder("square")
    with ea.apply(shapes, scale=None, record=recorder):
        run(shapes, ["a red square", "a blue square and a red circle"], num_images_per_prompt=2)
    assert recorder.branch_names == ("cond",) and recorder.maps().shape[1] == 4


# -- a shared denoiser ------------------------------------------------------------------------------------------------


def test_another_pipeline_of_the_same_denoiser(shapes: Any):
    pipe = relative(shapes, "StableDiffusionPipeline")
    with ea.apply(pipe, scale=None, record=ea.EntropyRecorder()):
        run(pipe, PROMPT, guidance_scale=1.0)
    other = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    options = {"image": Image.new("RGB", (64, 64)), "strength": 0.5, "num_inference_steps": 4}
    with ea.apply(pipe, scale=None, record=ea.MapRecorder("circle", prompt=PROMPT)):
        with pytest.raises(
            ValueError, match=r"not called by StableDiffusionPipeline, the pipeline that was routed: apply to"
        ):
            run(other, PROMPT, **options)
    with ea.apply(pipe, scale=None, record=(fresh := ea.MapRecorder("circle"))):
        run(pipe, PROMPT)
        fresh.reset()
        with pytest.raises(
            ValueError, match="the prompt is not known"
        ):  # the prompt of the previous generation does not count
            run(other, "a yellow circle", guidance_scale=1.0, **options)
        assert not fresh._sums
    recorder, steps = ea.MapRecorder("circle"), []
    with ea.apply(other, scale=None, record=recorder):
        run(other, PROMPT, **options)
    assert recorder.branch_names == ("cond",) and recorder.maps().shape == (1, 1, 1, 8, 8)
    with ea.apply(pipe, scale=lambda info: steps.append(info.step), layers="mid_block.*attn1$"):
        for each in (pipe, other, pipe):
            run(each, PROMPT, **(options if each is other else {}))
    assert steps == [0, 1] * 3


@pytest.mark.parametrize("images", [1, 2])
def test_guess_mode_of_a_controlnet_is_guided(shapes: Any, images: int):
    net = diffusers.ControlNetModel.from_unet(shapes.unet, conditioning_embedding_out_channels=(16, 32, 96))
    pipe = relative(shapes, "StableDiffusionControlNetPipeline", controlnet=net)
    options = {"image": Image.new("RGB", (64, 64)), "height": 64, "width": 64, "guess_mode": True}
    options["num_images_per_prompt"] = images
    plain = run(pipe, PROMPT, **options).images
    with attach(pipe, TSAM(alpha=0.0)):
        assert torch.equal(run(pipe, PROMPT, **options).images, plain)
    with attach(pipe, TSAM(alpha=5.0)) as handle:
        assert not torch.equal(run(pipe, PROMPT, **options).images, plain)
    assert [step for step, _ in handle.losses][:2] == [0, 1]


def test_guidance_of_the_latents_works_after_a_cut_off(shapes: Any):
    cut = {
        "callback_on_step_end": SDCFGCutoffCallback(cutoff_step_ratio=0.5),
        "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
        "num_inference_steps": 4,
    }
    plain = run(shapes, PROMPT, **cut).images
    with attach(shapes, TSAM(alpha=0.0)):
        assert torch.equal(run(shapes, PROMPT, **cut).images, plain)
