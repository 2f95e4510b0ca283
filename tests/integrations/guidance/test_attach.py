"""Guided generations: the unguided image at alpha = 0, a falling loss, every scheduler, and nothing left behind."""

from __future__ import annotations

import inspect
import warnings
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
)

import entropy_attn as ea
from entropy_attn.guidance import CONFORM, TSAM, AttendAndExcite, Custom, Guidance, SynGen
from entropy_attn.integrations.transformers import text_self_attention_maps
from entropy_attn.recorders.entropy import EntropyRecorder
from entropy_attn.scale import Fixed
from tests.support.guided_pipes import SCHEDULERS, draw, make_scheduler
from tests.support.tiny_models import make_pipe, make_text_pipe, sample


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_alpha_zero_gives_exactly_the_unguided_image(scheduler, guidance_scale):
    pipe = make_text_pipe()
    pipe.scheduler = make_scheduler(pipe, scheduler)
    expected = draw(pipe, guidance_scale=guidance_scale)
    with ea.guidance.attach(pipe, TSAM(alpha=0.0)) as handle:
        assert torch.equal(draw(pipe, guidance_scale=guidance_scale), expected)
        assert len(handle.losses) == len(pipe.scheduler.timesteps) and all(loss > 0 for _, loss in handle.losses)
    assert torch.equal(draw(pipe, guidance_scale=guidance_scale), expected)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_scheduler_steps_from_the_updated_latents(scheduler):
    """At every step, including the first; the model sees them scaled."""
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


def test_euler_moves_the_input_of_the_model_by_alpha_times_its_gradient():
    """So the latents move by alpha (sigma^2 + 1) times their gradient, which is too small without that factor."""
    moved = {}
    for scheduler in (DDIMScheduler, EulerDiscreteScheduler):
        pipe, inputs = make_text_pipe(), []
        # The same timestep, and latents that are the same after scaling.
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
    """From the first to the last step, guided or not."""
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
    assert handle.maps.shape == (1, 16, 16, 77)


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
    assert passes == [
        1,
        2,
        2,
        1,
        1,
        1,
        2,
        2,
    ]  # a guided pass has the conditional half only, and comes before the usual pass


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
    assert not torch.equal(handle.losses[0][1], plain.losses[0][1])  # the guided pass used the scale


def test_t_is_computed_from_the_text_encoder():
    pipe = make_text_pipe()
    with ea.guidance.attach(pipe, TSAM(alpha=0.0)) as handle:
        draw(pipe, ["ab c d", "c d"], num_images_per_prompt=2, negative_prompt=["e", "f g"])
    assert [prompt.text.prompt for prompt in handle.prompts] == ["ab c d"] * 2 + ["c d"] * 2
    assert [prompt.tokens for prompt in handle.prompts[1:3]] == [(1, 2, 3, 4), (1, 2)]
    ids = torch.tensor([handle.prompts[0].text.ids])
    _, maps = text_self_attention_maps(pipe.text_encoder, ids)
    (expected,) = ea.guidance.text_self_attention(maps, ids, pipe.tokenizer.eos_token_id)
    torch.testing.assert_close(TSAM().text_matrix(handle.prompts[0]), expected)


def test_images_of_a_batch_are_guided_independently():
    pipe, prompts = make_text_pipe(), ["ab c d", "c d"]
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    with ea.guidance.attach(pipe, TSAM(alpha=20.0)):
        together = draw(pipe, prompts, generator=generators)
        for index, prompt in enumerate(prompts):
            torch.testing.assert_close(together[index], draw(pipe, prompt, seed=index + 1)[0], rtol=1e-3, atol=1e-3)


COMPARED = [
    AttendAndExcite(tokens=("circle", "square"), alpha=5.0, thresholds={1: 0.999}, refine_iters=4),
    CONFORM(groups=[("red", "circle"), ("blue", "square")], alpha=5.0, refine_at=(1,), refine_iters=4),
    SynGen(pairs=[("red", "circle"), ("blue", "square")], alpha=5.0, refine_at=(1,), refine_iters=4),
]


@pytest.mark.parametrize("guidance", COMPARED, ids=lambda guidance: type(guidance).__name__)
def test_the_losses_of_other_methods_fall(guidance):
    pipe = ea.shapes.load_pipeline()
    with ea.guidance.attach(pipe, guidance) as handle:
        pipe(["a red circle and a blue square", "a blue square and a red circle"], num_inference_steps=3,
             output_type="latent", generator=torch.Generator().manual_seed(0))  # fmt: skip
    losses = [loss for step, loss in handle.losses if step == 1]
    assert len(losses) == 5 and (losses[-1] < losses[0]).all()


def test_reaching_the_threshold_ends_the_refinement():
    pipe = ea.shapes.load_pipeline()
    guidance = AttendAndExcite(tokens=("circle",), thresholds={0: 0.0, 1: 0.999}, refine_iters=3)
    with ea.guidance.attach(pipe, guidance) as handle:
        pipe("a red circle", num_inference_steps=3, output_type="latent")
    # One check that finds it reached, three refinements that do not reach it, and the normal update of each step.
    assert [step for step, _ in handle.losses] == [0, 0, 1, 1, 1, 1, 2]


def test_refusals():
    pipe = make_text_pipe()
    with pytest.raises(TypeError, match="pipe: expected a diffusers pipeline"):
        ea.guidance.attach(pipe.unet, TSAM())
    for wrong in (TSAM, 3.0, None):
        with pytest.raises(TypeError, match="guidance: expected"):
            ea.guidance.attach(pipe, wrong)
    with pytest.raises(TypeError, match="prompt"):
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


def test_no_warning_in_a_normal_generation():
    pipe = make_text_pipe()
    with ea.guidance.attach(pipe, TSAM()), warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(pipe)


def test_float16_keeps_a_small_gradient():
    """For losses of any size: gradients are scaled to the middle of float16's range on their way through the model."""
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
    """Of every layer of that size, in the conditional half, at the size of each image."""
    pipe, recorder = ea.shapes.load_pipeline(), ea.MapRecorder(special=True, size=(24, 16))
    with ea.apply(pipe, scale=None, record=recorder), ea.guidance.attach(pipe, TSAM(alpha=0.0)) as handle:
        pipe(["a red circle", "a blue square"], num_inference_steps=1, height=96, width=64, output_type="latent",
             generator=torch.Generator().manual_seed(0))  # fmt: skip
    assert len(recorder.layers) > 1 and handle.maps.shape == (2, 24, 16, 77)
    expected = recorder.maps()[recorder.branch_names.index("cond")].permute(0, 2, 3, 1)
    torch.testing.assert_close(handle.maps, expected, rtol=1e-4, atol=1e-6)


def test_a_spread_sequence_is_refused():
    pipe = make_text_pipe()
    expected = draw(pipe)
    pipe.unet._parallel_config = SimpleNamespace(context_parallel_config=object())
    with ea.attach(pipe, TSAM()), pytest.raises(RuntimeError, match=r"UNet2DConditionModel: .* guide on one device"):
        draw(pipe)
    del pipe.unet._parallel_config
    assert torch.equal(draw(pipe), expected)
