"""Guided generations: the parent's picture at alpha = 0, a falling loss, every scheduler, and nothing left behind."""

from __future__ import annotations

import copy
import gc
import inspect
import warnings
import weakref

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

import entropy_attn as ea
from entropy_attn.guidance import CONFORM, TSAM, AttendAndExcite, Custom, Guidance, SynGen
from entropy_attn.integrations.transformers import text_self_attention_maps
from entropy_attn.recorders.entropy import EntropyRecorder
from entropy_attn.scale import Fixed
from tests.support.tiny_models import make_pipe, make_text_encoder, make_text_pipe, make_tokenizer, sample

SCHEDULERS = [
    DDIMScheduler,
    PNDMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    EulerAncestralDiscreteScheduler,
]
PICTURE = {"height": 32, "width": 48, "output_type": "latent"}


def draw(pipe, prompt="ab c d", steps: int = 3, seed: int = 4, **options) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    options = {**PICTURE, "num_inference_steps": steps, "generator": generator, **options}
    return pipe(prompt, **options).images


def make_scheduler(pipe, scheduler):
    options = {"skip_prk_steps": True} if scheduler is PNDMScheduler else {}
    return scheduler.from_config(pipe.scheduler.config, **options)


def make_xl() -> StableDiffusionXLPipeline:
    parts = make_pipe("sdxl").components
    torch.manual_seed(0)
    parts["text_encoder_2"] = CLIPTextModelWithProjection(
        CLIPTextConfig(**{**make_text_encoder().config.to_dict(), "projection_dim": 32})
    ).eval()
    parts |= {"tokenizer": make_tokenizer(), "tokenizer_2": make_tokenizer()}
    parts["unet"] = UNet2DConditionModel(**{**parts["unet"].config, "cross_attention_dim": 64}).eval()
    pipe = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def footprint(pipe) -> list:
    return [
        type(pipe),
        set(vars(pipe)),
        set(vars(pipe.scheduler)),
        [(type(m), set(vars(m)), len(m._forward_pre_hooks)) for m in pipe.unet.modules()],
    ]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_alpha_zero_is_the_parents_picture_exactly(scheduler, guidance_scale):
    pipe = make_text_pipe()
    pipe.scheduler = make_scheduler(pipe, scheduler)
    expected = draw(pipe, guidance_scale=guidance_scale)
    with ea.guidance.attach(pipe, TSAM(alpha=0.0)) as handle:
        assert torch.equal(draw(pipe, guidance_scale=guidance_scale), expected)
        assert len(handle.losses) == len(pipe.scheduler.timesteps) and all(loss > 0 for _, loss in handle.losses)
    assert torch.equal(draw(pipe, guidance_scale=guidance_scale), expected)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_updated_latents_are_those_that_are_stepped_from(scheduler):
    """At every step, the first included, and the model sees them scaled."""
    pipe = make_text_pipe()
    pipe.scheduler = make_scheduler(pipe, scheduler)
    seen, stepped, raw = [], [], []
    original_step, original_scale = pipe.scheduler.step, pipe.scheduler.scale_model_input

    def scale(latents, t):
        raw.append((latents, original_scale(latents, t)))
        return raw[-1][1]

    def step(noise, t, latents, **kwargs):
        stepped.append(latents)
        return original_step(noise, t, latents, **kwargs)

    step.__signature__ = inspect.signature(original_step)
    pipe.scheduler.scale_model_input, pipe.scheduler.step = scale, step

    def note(module, args, output):
        seen.append(args[0])

    pipe.unet.register_forward_hook(note)
    with ea.guidance.attach(pipe, TSAM(alpha=5.0, steps=(0, 2))):
        draw(pipe, steps=4)
    assert pipe.scheduler.step is step
    calls = len(pipe.scheduler.timesteps)
    assert len(seen) == len(stepped) == calls  # a guided pass stops, so its hook is not called
    asked = [pair for pair in raw if pair[0].dim()]
    for number in range(calls):
        doubled = torch.cat([stepped[number]] * 2)
        scaled = next(out for given, out in asked if given.shape == doubled.shape and torch.equal(given, doubled))
        assert torch.equal(scaled, seen[number])
    first = asked[0][0][:1]
    assert not torch.equal(first, stepped[0])  # step 0 was guided


def test_euler_moves_what_the_model_sees_by_alpha_times_its_own_gradient():
    """Hence (sigma^2 + 1) times as far: without it the gradient on unscaled latents would be lost."""
    moved = {}
    for scheduler in (DDIMScheduler, EulerDiscreteScheduler):
        pipe, inputs = make_text_pipe(), []
        # One timestep for both, and latents that the model sees as the same.
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing", steps_offset=0)
        pipe.scheduler.set_timesteps(1)
        noise = torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(1))
        if scheduler is EulerDiscreteScheduler:
            sigma = pipe.scheduler.sigmas[0]
            noise = noise * (sigma**2 + 1) ** 0.5 / pipe.scheduler.init_noise_sigma
        pipe.unet.register_forward_hook(lambda m, args, out, inputs=inputs: inputs.append(args[0][-1:]))
        for alpha in (0.0, 50.0):
            with ea.guidance.attach(pipe, TSAM(alpha=alpha)):
                draw(pipe, steps=1, latents=noise)
        moved[scheduler] = inputs[1] - inputs[0]
    assert moved[DDIMScheduler].norm() > 1e-3
    torch.testing.assert_close(moved[EulerDiscreteScheduler], moved[DDIMScheduler], rtol=1e-2, atol=1e-4)


def test_the_schedule_spans_all_steps_of_the_generation():
    """From the first to the last one, guided or not."""
    pipe = make_text_pipe()
    expected = draw(pipe, steps=4)
    for step_range, moving in (((1.0, 0.0), [0, 1, 2]), ((0.0, 1.0), [1, 2, 3])):
        for step in range(4):
            with ea.guidance.attach(pipe, TSAM(steps=(step,), step_range=step_range)):
                assert torch.equal(draw(pipe, steps=4), expected) == (step not in moving)


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_the_loss_falls_over_guided_updates(variant):
    pipe = ea.shapes.load_pipeline()
    guidance = TSAM(alpha=10.0, variant=variant, refine_at=(0, 2), refine_iters=10)
    with ea.guidance.attach(pipe, guidance) as handle:
        pipe("a red circle and a blue square", num_inference_steps=4, output_type="latent",
             generator=torch.Generator().manual_seed(0))  # fmt: skip
    for step in (0, 2):
        values = [float(loss) for at, loss in handle.losses if at == step]
        assert len(values) == 11 and values[-1] < values[0]
    assert handle.maps.shape == (1, 8, 8, 77)


def test_the_loss_is_lower_than_without_guidance_at_the_end():
    pipe, last = ea.shapes.load_pipeline(), {}
    for alpha in (0.0, 20.0):
        with ea.guidance.attach(pipe, TSAM(alpha=alpha)) as handle:
            for seed in range(3):
                pipe("a red circle and a blue square", num_inference_steps=10, output_type="latent",
                     generator=torch.Generator().manual_seed(seed))  # fmt: skip
                last[alpha] = last.get(alpha, 0.0) + sum(float(loss) for _, loss in handle.losses[5:])
    assert last[20.0] < last[0.0]


def test_no_guided_pass_after_the_last_guided_step():
    pipe, passes = make_text_pipe(), []
    pipe.unet.conv_in.register_forward_hook(lambda m, args, out: passes.append(len(args[0])))
    with ea.guidance.attach(pipe, TSAM(alpha=1.0, steps=(0, 2), refine_at=(2,), refine_iters=2)) as handle:
        draw(pipe, steps=4)
    assert [step for step, _ in handle.losses] == [0, 2, 2, 2]
    assert passes == [1, 2, 2, 1, 1, 1, 2, 2]  # the conditional half alone, before the usual pass


def test_scale_and_entropy_of_an_apply_work_at_the_same_time():
    pipe = make_text_pipe()
    recorders = [EntropyRecorder(), EntropyRecorder()]
    with ea.apply(pipe, scale=Fixed(0.3), record=recorders[0], layers="all"):
        expected = draw(pipe)
        with ea.guidance.attach(pipe, TSAM(alpha=0.0)):
            assert torch.equal(draw(pipe), expected)
    with ea.guidance.attach(pipe, TSAM(alpha=0.0)) as plain:
        draw(pipe)
    with ea.guidance.attach(pipe, TSAM(alpha=20.0)) as handle:
        with ea.apply(pipe, scale=Fixed(0.3), record=recorders[1], layers="all") as routing:
            guided = draw(pipe)
            assert routing.active
    assert not torch.equal(guided, expected)
    assert len(recorders[1]) * 2 == len(recorders[0]) == 2 * 3 * len(routing.layers)
    assert not torch.equal(handle.losses[0][1], plain.losses[0][1])  # the guided pass had the scale


def test_t_is_the_text_encoders():
    pipe = make_text_pipe()
    with ea.guidance.attach(pipe, TSAM(alpha=0.0)) as handle:
        draw(pipe, ["ab c d", "c d"], num_images_per_prompt=2, negative_prompt=["e", "f g"])
    assert [prompt.text.prompt for prompt in handle.prompts] == ["ab c d"] * 2 + ["c d"] * 2
    assert [prompt.tokens for prompt in handle.prompts[1:3]] == [(1, 2, 3, 4), (1, 2)]
    ids = torch.tensor([handle.prompts[0].text.ids])
    _, maps = text_self_attention_maps(pipe.text_encoder, ids)
    (expected,) = ea.guidance.text_self_attention(maps, ids, pipe.tokenizer.eos_token_id)
    torch.testing.assert_close(TSAM().text_matrix(handle.prompts[0]), expected)


def test_pictures_of_a_batch_are_guided_each_by_itself():
    pipe, prompts = make_text_pipe(), ["ab c d", "c d"]
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    with ea.guidance.attach(pipe, TSAM(alpha=20.0)):
        together = draw(pipe, prompts, generator=generators)
        for index, prompt in enumerate(prompts):
            torch.testing.assert_close(together[index], draw(pipe, prompt, seed=index + 1)[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [make_text_pipe, make_xl], ids=["sd", "sdxl"])
def test_pipelines_are_their_parents_with_guidance(make):
    parent = make()
    expected = draw(parent)
    cls = {StableDiffusionPipeline: ea.TSAMStableDiffusionPipeline}.get(type(parent), ea.TSAMStableDiffusionXLPipeline)
    pipe = cls.from_pipe(parent)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet is parent.unet
    before = footprint(parent)
    assert torch.equal(draw(pipe, guidance=None), expected) and pipe.last_guidance is None
    assert torch.equal(draw(pipe, guidance=TSAM(alpha=0.0)), expected)
    guided = draw(pipe)  # T-SAM unless said otherwise
    assert not torch.equal(guided, expected) and len(pipe.last_guidance.losses) == 3
    assert footprint(parent) == before
    with ea.guidance.attach(parent, TSAM()):
        assert torch.equal(draw(parent), guided)
    assert footprint(parent) == before and torch.equal(draw(parent), expected)


def test_from_pretrained():
    pipe = ea.TSAMStableDiffusionPipeline.from_pretrained(ea.shapes.MODEL_DIR, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "output_type": "latent"}
    expected = ea.shapes.load_pipeline()("a red circle", generator=torch.Generator().manual_seed(0), **options).images
    found = pipe("a red circle", generator=torch.Generator().manual_seed(0), guidance=TSAM(alpha=0.0), **options).images
    assert torch.equal(found, expected)


def test_the_sdxl_mean_counts_each_encoder_as_one_half():
    pipe = make_xl()
    with ea.guidance.attach(pipe, TSAM(alpha=0.0)) as handle:
        draw(pipe)
    ids = torch.tensor([handle.prompts[0].text.ids])
    halves = [text_self_attention_maps(each, ids)[1].mean(0)[0] for each in (pipe.text_encoder, pipe.text_encoder_2)]
    torch.testing.assert_close(handle.prompts[0].attention, (halves[0] + halves[1]) / 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    pipe = make_text_pipe().to(dtype=dtype)
    try:
        expected = draw(pipe)
    except RuntimeError as error:  # no such operation on this CPU
        pytest.skip(str(error))
    with ea.guidance.attach(pipe, TSAM(alpha=0.0)) as handle:
        assert torch.equal(draw(pipe), expected)
    assert handle.maps.dtype == torch.float32 and handle.losses[0][1].dtype == torch.float32
    with ea.guidance.attach(pipe, TSAM()):
        guided = draw(pipe)
    assert guided.dtype == dtype and guided.isfinite().all() and not torch.equal(guided, expected)


def test_inference_mode_and_callbacks():
    pipe, seen = make_text_pipe(), []
    expected = None

    def callback(pipe, step, timestep, tensors):
        seen.append(tensors["latents"].clone())
        return {"latents": tensors["latents"] * 0.9}

    with ea.guidance.attach(pipe, TSAM()):
        expected = draw(pipe, callback_on_step_end=callback)
        with torch.inference_mode():
            found = draw(pipe, callback_on_step_end=callback)
    assert torch.equal(found, expected) and len(seen) == 6 and torch.equal(seen[2] * 0.9, expected)


def test_embeddings_need_the_text():
    pipe = make_text_pipe()
    embeds, negative = pipe.encode_prompt("ab c d", "cpu", 1, True)
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": negative}
    with ea.guidance.attach(pipe, TSAM()):
        expected = draw(pipe)
        with pytest.raises(ValueError, match=r"prompt=\.\.\..*guidance_prompt="):
            draw(pipe, None, **given)
    with ea.guidance.attach(pipe, TSAM(), prompt="ab c d"):
        assert torch.equal(draw(pipe, None, **given), expected)
    own = ea.TSAMStableDiffusionPipeline.from_pipe(pipe)
    assert torch.equal(draw(own, None, guidance_prompt="ab c d", **given), expected)
    with ea.guidance.attach(pipe, TSAM(), prompt="ab c d"), pytest.raises(ValueError, match="9 positions"):
        draw(pipe, None, prompt_embeds=torch.cat([embeds, embeds[:, :2]], 1),
             negative_prompt_embeds=torch.cat([embeds, embeds[:, :2]], 1))  # fmt: skip


@pytest.mark.parametrize("prompt", ["c", ""])
def test_a_single_word_is_said_and_not_guided(prompt):
    pipe = make_text_pipe()
    expected = draw(pipe, prompt)
    with ea.guidance.attach(pipe, TSAM()) as handle:
        with pytest.warns(UserWarning, match="too few words") as said:
            assert torch.equal(draw(pipe, prompt), expected)
        assert len(said) == 1 and handle.losses == []
        with pytest.warns(UserWarning, match="too few words"):
            draw(pipe, [prompt, "ab c d"])
        assert handle.losses[0][1][0] == 0 and handle.losses[0][1][1] > 0


def test_long_prompts_are_cut_as_the_tokenizer_cuts_them():
    pipe = make_text_pipe()
    with ea.guidance.attach(pipe, TSAM()) as handle:
        draw(pipe, "a b c d e f g h i")
    assert handle.prompts[0].tokens == (1, 2, 3, 4, 5)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_stays_when_a_generation_fails(error):
    pipe = make_text_pipe()
    before, expected = footprint(pipe), draw(pipe)
    before = footprint(pipe)

    def stop(*_):
        raise error

    handle = ea.guidance.attach(pipe, TSAM())
    assert repr(handle).startswith("<GuidanceHandle, TSAM(")
    hook = pipe.unet.mid_block.register_forward_pre_hook(stop)
    with pytest.raises(error):
        draw(pipe)
    hook.remove()
    handle.remove()
    handle.remove()
    assert not handle.active and footprint(pipe) == before and torch.equal(draw(pipe), expected)


def test_a_removed_guidance_holds_no_pipeline():
    pipe = make_text_pipe()
    with ea.guidance.attach(pipe, TSAM()) as handle:
        draw(pipe)
    held = weakref.ref(pipe)
    del pipe
    gc.collect()
    assert held() is None and len(handle.losses) == 3 and len(handle.prompts) == 1


def test_another_pipeline_with_the_same_modules_is_not_guided():
    pipe = make_text_pipe()
    other = StableDiffusionPipeline.from_pipe(pipe)
    expected = draw(other)
    with ea.guidance.attach(pipe, TSAM()):
        assert torch.equal(draw(other), expected)
        assert torch.equal(draw(copy.deepcopy(pipe)), expected)
        assert not torch.equal(draw(pipe), expected)


def test_a_loss_of_the_users_own():
    pipe, seen = make_text_pipe(), []

    def loss(maps, prompt):
        seen.append((tuple(maps.shape), prompt.text.find("ab").positions, prompt.previous is None))
        return maps[..., list(prompt.tokens)].sum()

    with ea.guidance.attach(pipe, loss) as handle:
        draw(pipe)
    assert seen[0] == ((16, 24, 7), (1, 2), True) or seen[0] == ((8, 12, 7), (1, 2), True)
    assert [first for *_, first in seen] == [True, False, False] and len(handle.losses) == 3
    with ea.guidance.attach(pipe, lambda maps, prompt: 3.0), pytest.raises(TypeError, match="0-d"):
        draw(pipe)


def add_ip_adapter(unet, width: int = 16, tokens: int = 4) -> None:
    torch.manual_seed(6)
    weights, cross = {}, unet.config.cross_attention_dim
    for number, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            inner = unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape[0]
            weights |= {f"{number}.to_{which}_ip.weight": torch.randn(inner, cross) for which in "kv"}
    projection = {
        "proj.weight": torch.randn(tokens * cross, width) * 0.1,
        "proj.bias": torch.zeros(tokens * cross),
        "norm.weight": torch.ones(cross),
        "norm.bias": torch.zeros(cross),
    }
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": weights}])


def test_with_an_ip_adapter():
    pipe = make_text_pipe()
    plain = draw(pipe)
    add_ip_adapter(pipe.unet)
    embeds = torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(8))
    options = {"ip_adapter_image_embeds": [embeds]}
    expected = draw(pipe, **options)
    assert not torch.equal(expected, plain)
    with ea.guidance.attach(pipe, TSAM(alpha=0.0)) as handle:
        assert torch.equal(draw(pipe, **options), expected)
        torch.testing.assert_close(handle.maps.sum(-1), torch.ones(handle.maps.shape[:-1]))
    with ea.guidance.attach(pipe, TSAM()):
        assert not torch.equal(draw(pipe, **options), expected)


def test_with_offloading():
    """As enable_model_cpu_offload sets it up, which itself needs a device to offload from."""
    accelerate = pytest.importorskip("accelerate")
    pipe = make_text_pipe()
    with ea.guidance.attach(pipe, TSAM()):
        expected, before = draw(pipe), None
        for part in (pipe.text_encoder, pipe.unet, pipe.vae):
            _, before = accelerate.cpu_offload_with_hook(part, "cpu", before)
        assert torch.equal(draw(pipe), expected)


COMPARED = [
    AttendAndExcite(tokens=("circle", "square"), alpha=5.0, thresholds={1: 0.999}, refine_iters=4),
    CONFORM(groups=[("red", "circle"), ("blue", "square")], alpha=5.0, refine_at=(1,), refine_iters=4),
    SynGen(pairs=[("red", "circle"), ("blue", "square")], alpha=5.0, refine_at=(1,), refine_iters=4),
]


@pytest.mark.parametrize("guidance", COMPARED, ids=lambda guidance: type(guidance).__name__)
def test_the_compared_losses_fall_too(guidance):
    pipe = ea.shapes.load_pipeline()
    with ea.guidance.attach(pipe, guidance) as handle:
        pipe(["a red circle and a blue square", "a blue square and a red circle"], num_inference_steps=3,
             output_type="latent", generator=torch.Generator().manual_seed(0))  # fmt: skip
    losses = [loss for step, loss in handle.losses if step == 1]
    assert len(losses) == 5 and (losses[-1] < losses[0]).all()


def test_a_threshold_that_is_reached_ends_the_refinement():
    pipe = ea.shapes.load_pipeline()
    guidance = AttendAndExcite(tokens=("circle",), thresholds={0: 0.0, 1: 0.999}, refine_iters=3)
    with ea.guidance.attach(pipe, guidance) as handle:
        pipe("a red circle", num_inference_steps=3, output_type="latent")
    # One look that finds it reached; three refinements that do not get there; and the normal update of each step.
    assert [step for step, _ in handle.losses] == [0, 0, 1, 1, 1, 1, 2]


def test_refusals():
    pipe = make_text_pipe()
    with pytest.raises(TypeError, match="pipe: expected a diffusers pipeline"):
        ea.guidance.attach(pipe.unet, TSAM())
    for wrong in (TSAM, 3.0, None):
        with pytest.raises(TypeError, match="guidance="):
            ea.guidance.attach(pipe, wrong)
    with pytest.raises(TypeError, match="prompt="):
        ea.guidance.attach(pipe, TSAM(), prompt=3)
    handle = ea.guidance.attach(pipe, TSAM())
    with pytest.raises(RuntimeError, match="guided already"):
        ea.guidance.attach(pipe, TSAM())
    handle.remove()
    with pytest.raises(RuntimeError, match="removed"), handle:
        pass
    with (
        pytest.raises(ValueError, match="no tokenizer"),
        ea.guidance.attach(make_pipe(), TSAM(), prompt="a b") as handle,
    ):
        sample(handle._pipe)
    with pytest.raises(NotImplementedError):
        Guidance().loss(torch.zeros(1), None)


def test_no_warning_in_a_usual_generation():
    pipe = make_text_pipe()
    with ea.guidance.attach(pipe, TSAM()), warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(pipe)


def test_float16_keeps_a_small_gradient():
    """Of a loss of any size: a picture's gradient is brought to the middle of float16 on its way through the model."""
    moved = {}
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    for dtype, size in ((torch.float32, 1.0), (torch.float16, 1.0), (torch.float16, 2.0**-16)):
        pipe, seen = ea.shapes.load_pipeline(dtype=dtype), []

        def loss(maps, prompt, size=size):
            return TSAM().loss(maps, prompt) * size

        pipe.unet.register_forward_hook(lambda m, args, out, seen=seen: seen.append(args[0][-1:].float()))
        guidance = Custom(function=loss, text_attention=True, alpha=2.0**8 / size, steps=(0,))
        with ea.guidance.attach(pipe, guidance):
            pipe("a red circle and a blue square", latents=noise.to(dtype), num_inference_steps=1, output_type="latent")
        moved[dtype, size] = seen[-1] - noise.to(dtype).float()
    assert torch.equal(moved[torch.float16, 1.0], moved[torch.float16, 2.0**-16])
    error = (moved[torch.float16, 1.0] - moved[torch.float32, 1.0]).norm() / moved[torch.float32, 1.0].norm()
    assert error < 0.05


def test_the_maps_are_those_that_a_recorder_sees():
    """Of every layer of that size, in the conditional half, at each picture's own size."""
    pipe, recorder = ea.shapes.load_pipeline(), ea.MapRecorder(special=True)
    with ea.apply(pipe, scale=None, record=recorder), ea.guidance.attach(pipe, TSAM(alpha=0.0)) as handle:
        pipe(["a red circle", "a blue square"], num_inference_steps=1, height=96, width=64, output_type="latent",
             generator=torch.Generator().manual_seed(0))  # fmt: skip
    assert len(recorder.layers) > 1 and handle.maps.shape == (2, 12, 8, 77)
    expected = recorder.maps()[recorder.branch_names.index("cond")].permute(0, 2, 3, 1)
    torch.testing.assert_close(handle.maps, expected, rtol=1e-4, atol=1e-6)
