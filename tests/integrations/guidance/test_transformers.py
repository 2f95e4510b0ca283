"""Guidance of Stable Diffusion 3 and Flux, against an eager writing of the maps of joint attention."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

import entropy_attn as ea
from entropy_attn.guidance import CONFORM, JEDI, TSAM, AttendAndExcite, SynGen
from entropy_attn.guidance.differentiable_maps import GraphMaps
from entropy_attn.integrations.diffusers.apply import plain_routing
from entropy_attn.integrations.guidance.forward import map_layers, middle, text_maps
from entropy_attn.integrations.guidance.inputs import latents_in, with_latents
from entropy_attn.integrations.guidance.prompts import joint_prompts_of
from entropy_attn.scale import Constant
from tests.recorders.test_joint_maps import CLIP, FLUX, SD3, T5, generate
from tests.support.tiny_denoisers import CASES
from tests.support.tiny_pipelines import PIPELINES

SETTINGS = pytest.mark.parametrize("setting", [SD3, FLUX], ids=["sd3", "flux"])
DEEP = {"sd3": {"num_layers": 6}, "flux": {"num_layers": 2, "num_single_layers": 4}}
PROMPT = "ab c d"
METHODS = [
    TSAM(alpha=10.0),
    TSAM(alpha=10.0, variant="paper"),
    AttendAndExcite(tokens=("ab", "d")),
    CONFORM(groups=[("ab", "c"), ("d",)]),
    SynGen(pairs=[("ab", "c")]),
    JEDI(groups=[("ab", "c"), ("d",)]),
]


def name_of(setting: tuple) -> str:
    return "sd3" if setting is SD3 else "flux"


def deep(setting: tuple, dtype: torch.dtype = torch.float32) -> Any:
    """A pipeline whose transformer has layers after those with maps: six, of which 1, 2 and 3 are the middle."""
    case = CASES[name_of(setting)]
    changed = type(case)(**{**vars(case), "config": {**case.config, **DEEP[name_of(setting)]}})
    return setting[0](transformer=changed.make().to(dtype))


class Eager(TorchFunctionMode):
    """Materializes the probabilities of every joint attention call, and keeps (batch, grid, text) with their graph."""

    def __init__(self, setting: tuple):
        super().__init__()
        (_, _, grid, self.text, self.order), self.calls = setting, []
        self.image = grid[0] * grid[1]

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = args[:3] if args else (kwargs[each] for each in ("query", "key", "value"))
        probabilities = torch.softmax(query @ key.mT / math.sqrt(query.shape[-1]), dim=-1)
        if key.shape[-2] == self.image + self.text:
            first = self.order == "first"
            image = slice(self.text, None) if first else slice(0, self.image)
            text = slice(0, self.text) if first else slice(self.image, None)
            self.calls.append(probabilities.mean(1)[:, image, text])
        return probabilities @ value


def conditional_call(pipe: Any, setting: tuple, dtype: torch.dtype) -> dict[str, Any]:
    """The arguments of the first call of the pipeline's transformer, of the prompt alone."""
    seen: list[dict] = []
    hook = pipe.transformer.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    generate(pipe.to(torch.float32), PROMPT, setting[1], guidance_scale=1.0)
    hook.remove()
    pipe.transformer.to(dtype)
    return {k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in seen[0].items()}


@SETTINGS
@pytest.mark.parametrize("guidance", METHODS, ids=lambda each: f"{type(each).__name__}-{getattr(each, 'variant', '')}")
def test_the_gradient_is_that_of_the_full_eager_forward(setting, guidance):
    """In float64; our pass stops after the third of the layers with maps, the eager one runs to the end."""
    pipe, dtype = deep(setting), torch.float64
    call = conditional_call(pipe, setting, dtype)
    (prompt,) = joint_prompts_of(pipe, [PROMPT], setting[3], attention=True)
    grid, routing = setting[2], plain_routing(pipe.transformer)
    size, layers = map_layers(routing, (2 * grid[0], 2 * grid[1]), None)
    assert size == grid and len(layers) == 3
    gradients, maps = [], []
    for eager in (False, True):
        latents = call["hidden_states"].clone().requires_grad_()
        given = {**call, "hidden_states": latents}
        if eager:
            with Eager(setting) as oracle:
                pipe.transformer(**given)
            assert len(oracle.calls) == 6
            found = torch.stack(oracle.calls[1:4]).mean(0).unflatten(1, grid)
        else:
            found = text_maps(routing, layers, size, 0, setting[3], ((), given))
        (gradient,) = torch.autograd.grad(guidance.loss(found[0], prompt), latents)
        gradients.append(gradient)
        maps.append(found)
    assert gradients[1].abs().max() > 0
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-8, atol=1e-12)
    scale = gradients[1].abs().max()
    torch.testing.assert_close(gradients[0] / scale, gradients[1] / scale, rtol=1e-6, atol=1e-8)


@SETTINGS
def test_the_pass_stops_after_the_last_map_with_the_gradient_of_the_routed_full_forward(setting):
    pipe = deep(setting)
    call = conditional_call(pipe, setting, torch.float32)
    grid, routing, ran = setting[2], plain_routing(pipe.transformer), []
    size, layers = map_layers(routing, (2 * grid[0], 2 * grid[1]), None)

    class Patient(GraphMaps):
        def record(self, info, scale, measured, branches, latent_size):
            self._maps[info.layer] = measured

    gradients = []
    for whole in (False, True):
        latents = call["hidden_states"].clone().requires_grad_()
        given = {**call, "hidden_states": latents}
        if whole:
            recorder = Patient(layers, setting[3])
            with routing.isolated_pass(recorder, 0):
                pipe.transformer(**given)
            maps = recorder.mean(size)
        else:
            hooks = [
                module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
                for name, module in pipe.transformer.named_modules()
            ]
            maps = text_maps(routing, layers, size, 0, setting[3], ((), given))
            for hook in hooks:
                hook.remove()
        (gradient,) = torch.autograd.grad(maps.square().sum(), latents)
        gradients.append(gradient)
    assert torch.equal(gradients[0], gradients[1]) and gradients[0].abs().max() > 0
    following = {"sd3": "transformer_blocks.4", "flux": "single_transformer_blocks.2"}[name_of(setting)]
    assert any(name.startswith(layers[-1]) for name in ran) and not any(name.startswith(following) for name in ran)
    assert all(parameter.requires_grad for parameter in pipe.transformer.parameters())


def test_the_middle_of_the_large_models():
    """Blocks 4 to 15 in Stable Diffusion 3.5 Medium, as in JEDI's code."""
    for layers, expected in ((24, range(4, 16)), (38, range(6, 26)), (57, range(9, 38)), (1, [0]), (2, [0, 1])):
        assert middle([str(layer) for layer in range(layers)]) == [str(layer) for layer in expected]


@SETTINGS
def test_layers_and_map_size(setting):
    routing, grid = plain_routing(deep(setting).transformer), setting[2]
    latent_size = (2 * grid[0], 2 * grid[1])
    size, layers = map_layers(routing, latent_size, grid, r"^transformer_blocks\.1\.")
    assert size == grid and layers == ["transformer_blocks.1.attn"]
    with pytest.raises(ValueError, match=r"layers='attn2': no layer of \w+Transformer2DModel .*'transformer_blocks.0."):
        map_layers(routing, latent_size, None, "attn2")  # self-attention of the image in Stable Diffusion 3
    with pytest.raises(ValueError, match=r"map_size=\(3, 2\): no joint-attention layer .*\(6, 4\) \(6 layers\)"):
        map_layers(routing, latent_size, (3, 2))


VARIANTS = {
    "sd3": (SD3, {}),
    "sd3 without guidance": (SD3, {"guidance_scale": 1.0}),
    "sd3 skips layers": (SD3, {"skip_guidance_layers": [0], "skip_layer_guidance_start": 0.0}),
    "flux": (FLUX, {}),
    "flux with a negative prompt": (FLUX, {"true_cfg_scale": 3.0, "negative_prompt": "d"}),
}
EACH = pytest.mark.parametrize(("setting", "options"), VARIANTS.values(), ids=list(VARIANTS))


@EACH
def test_alpha_zero_gives_exactly_the_unguided_image(setting, options):
    pipe = setting[0]()
    expected = generate(pipe, PROMPT, setting[1], **options)
    before = footprint(pipe)
    with ea.attach(pipe, TSAM(alpha=0.0)) as handle:
        assert torch.equal(generate(pipe, PROMPT, setting[1], **options), expected)
    assert [step for step, _ in handle.losses] == [0, 1] and all(loss > 0 for _, loss in handle.losses)
    assert handle.maps.shape == (1, *setting[2], setting[3])
    assert footprint(pipe) == before and torch.equal(generate(pipe, PROMPT, setting[1], **options), expected)


def footprint(pipe: Any) -> list:
    return [
        type(pipe),
        set(vars(pipe)),
        set(vars(pipe.scheduler)),
        [(type(m), set(vars(m)), len(m._forward_pre_hooks)) for m in pipe.transformer.modules()],
    ]


@EACH
def test_every_call_of_a_guided_step_and_the_scheduler_get_the_updated_latents(setting, options):
    """At the first step too; the update is alpha times the gradient of the eager forward."""
    pipe, calls, stepped = setting[0](), [], []
    original = pipe.scheduler.step

    def step(noise, t, latents, **kwargs):
        stepped.append(latents)
        calls.append([])
        return original(noise, t, latents, **kwargs)

    pipe.scheduler.step = step
    calls.append([])
    pipe.transformer.register_forward_hook(lambda _, args, kwargs, out: calls[-1].append(kwargs), with_kwargs=True)
    plain = generate(pipe, PROMPT, setting[1], **options)
    first = calls[0][0]
    unguided, calls[:], stepped[:] = stepped[0], [[]], []
    with ea.attach(pipe, TSAM(alpha=5.0, steps=(0,))) as handle:
        guided = generate(pipe, PROMPT, setting[1], **options)
    assert pipe.scheduler.step is step and not torch.equal(guided, plain)
    assert not torch.equal(stepped[0], unguided) and len(stepped) == 2 and len(handle.losses) == 1
    for number, latents in enumerate(stepped):
        assert calls[number] and all(
            torch.equal(part, latents) for call in calls[number] for part in call["hidden_states"].split(len(latents))
        )

    rows = slice(-1, None)  # of the prompt: the second half of Stable Diffusion 3, the only one of Flux
    call = {k: v[rows] if torch.is_tensor(v) and len(v) == 2 else v for k, v in first.items()}
    call["hidden_states"] = unguided.clone().requires_grad_()
    with Eager(setting) as oracle:
        pipe.transformer(**call)
    names = list(plain_routing(pipe.transformer).rules)
    joint = [name for name in names if not name.endswith("attn2")]
    chosen = [oracle.calls[joint.index(name)] for name in middle(joint)]
    maps = torch.stack(chosen).mean(0).unflatten(1, setting[2])
    (gradient,) = torch.autograd.grad(handle.guidance.loss(maps[0], handle.prompts[0]), call["hidden_states"])
    torch.testing.assert_close(stepped[0], unguided - 5.0 * gradient, rtol=1e-4, atol=1e-5)


def test_each_text_has_the_attention_of_its_encoders():
    """CLIP's text that of both CLIP encoders, T5's that of T5, with 0 between them; Flux has T5's alone."""
    pipe = SD3[0]()
    (prompt,) = joint_prompts_of(pipe, ["ab c"], CLIP + T5, attention=True)
    assert prompt.parts == ((0, CLIP), (CLIP, CLIP + T5)) and prompt.attention.shape == (CLIP + T5, CLIP + T5)
    assert prompt.tokens == (1, 2, 3, CLIP, CLIP + 1, CLIP + 2) and prompt.text.outer == (0, CLIP - 1)
    assert prompt.tokens_of_parts == ((1, 2, 3), (CLIP, CLIP + 1, CLIP + 2))
    assert not prompt.attention[:CLIP, CLIP:].any() and not prompt.attention[CLIP:, :CLIP].any()
    torch.testing.assert_close(prompt.attention.sum(1), torch.ones(CLIP + T5))
    ids = pipe.tokenizer("ab c", padding="max_length", max_length=CLIP, return_tensors="pt").input_ids
    halves = [eager_maps(encoder, ids) for encoder in (pipe.text_encoder, pipe.text_encoder_2)]
    torch.testing.assert_close(prompt.attention[:CLIP, :CLIP], (halves[0] + halves[1]) / 2, rtol=1e-5, atol=1e-6)
    ids = pipe.tokenizer_3("ab c", padding="max_length", max_length=T5, return_tensors="pt").input_ids
    torch.testing.assert_close(prompt.attention[CLIP:, CLIP:], t5_maps(pipe.text_encoder_3, ids), rtol=1e-5, atol=1e-6)
    assert prompt.attention[CLIP, CLIP + 1] > 0  # T5 is not causal

    pipe = FLUX[0]()
    (alone,) = joint_prompts_of(pipe, ["ab c"], T5, attention=True)
    assert alone.parts == ((0, T5),) and alone.tokens == (0, 1, 2) and alone.text.outer == ()
    torch.testing.assert_close(alone.attention, t5_maps(pipe.text_encoder_2, ids), rtol=1e-5, atol=1e-6)


def eager_maps(encoder: Any, ids: torch.Tensor) -> torch.Tensor:
    """Of CLIP: mean over layers and heads of softmax(q k / sqrt(d)), causal, from the layers' own projections."""
    found = []

    def note(module: Any, args: tuple, kwargs: dict) -> None:
        states = kwargs.get("hidden_states", args[0] if args else None)
        q, k = (
            projection(states).double().unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
            for projection in (module.q_proj, module.k_proj)
        )
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        found.append(scores.masked_fill(later, -torch.inf).softmax(-1).mean(1))

    hooks = [
        module.register_forward_pre_hook(note, with_kwargs=True)
        for module in encoder.modules()
        if hasattr(module, "q_proj")
    ]
    with torch.no_grad():
        encoder(ids)
    for hook in hooks:
        hook.remove()
    return torch.stack(found).mean(0)[0].float()


def t5_maps(encoder: Any, ids: torch.Tensor) -> torch.Tensor:
    """Of T5: softmax(q k + bias of the distance), without 1 / sqrt(d) and without a mask; the bias by its formula."""
    block = encoder.encoder.block[0].layer[0]
    attention, length = block.SelfAttention, ids.shape[1]
    assert len(encoder.encoder.block) == 1
    with torch.no_grad():
        states = block.layer_norm(encoder.get_input_embeddings()(ids))
        q, k = (
            projection(states).double().unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)
            for projection in (attention.q, attention.k)
        )
        # Nearer than 8 positions each distance has a bucket of its own, backwards 0 to 7, forwards 16 to 23; beyond
        # them buckets grow with the logarithm of the distance, up to 128.
        buckets, near = 16, 8
        table = torch.empty(length, length, dtype=torch.long)
        for i in range(length):
            for j in range(length):
                far = abs(j - i)
                spread = near + int(math.log(max(far, 1) / near) / math.log(128 / near) * (buckets - near))
                table[i, j] = (buckets if j > i else 0) + (far if far < near else min(spread, buckets - 1))
        bias = attention.relative_attention_bias.weight[table].permute(2, 0, 1).double()
        return (q @ k.mT + bias).softmax(-1).mean(1)[0].float()


def test_sd3_without_t5():
    pipe = SD3[0](text_encoder_3=None, tokenizer_3=None)
    with ea.attach(pipe, TSAM()) as handle:
        generate(pipe, "ab c", SD3[1])
    assert len(handle.losses) == 2 and handle.maps.shape[-1] == CLIP + T5
    (prompt,) = handle.prompts
    assert prompt.parts == ((0, CLIP),) and prompt.tokens == (1, 2, 3)
    assert not prompt.attention[CLIP:].any()


def test_prompts_of_the_other_encoders_and_batches():
    pipe = SD3[0]()
    with ea.attach(pipe, AttendAndExcite(tokens=("cd",))) as handle:
        generate(pipe, "ab", SD3[1], prompt_3="a cd")
    assert handle.prompts[0].tokens == (1, 2, CLIP, CLIP + 1, CLIP + 2)
    with ea.attach(pipe, TSAM()) as handle:
        together = generate(pipe, ["ab", "c d"], SD3[1], num_images_per_prompt=2, latents=noise(4))
        assert [prompt.text.prompt for prompt in handle.prompts] == ["ab", "ab", "c d", "c d"]
        alone = generate(pipe, "c d", SD3[1], latents=noise(4)[2:3])
    torch.testing.assert_close(together[2:3], alone, rtol=1e-4, atol=1e-5)


def noise(images: int) -> torch.Tensor:
    return torch.randn(images, 4, 12, 8, generator=torch.Generator().manual_seed(1))


@SETTINGS
@torch.no_grad()
def test_embeddings_need_the_text(setting):
    pipe = setting[0]()
    options = {"max_sequence_length": T5, "num_images_per_prompt": 1}
    if setting is SD3:
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        given = dict(zip(names, pipe.encode_prompt(PROMPT, None, None, **options), strict=True))
    else:
        given = dict(
            zip(("prompt_embeds", "pooled_prompt_embeds"), pipe.encode_prompt(PROMPT, **options), strict=False)
        )
    with ea.attach(pipe, TSAM()):
        expected = generate(pipe, PROMPT, setting[1])
        with pytest.raises(ValueError, match=r"prompt=\.\.\..*guidance_prompt="):
            generate(pipe, None, setting[1], **given)
    with ea.attach(pipe, TSAM(), prompt=PROMPT):
        assert torch.equal(generate(pipe, None, setting[1], **given), expected)


@SETTINGS
def test_half_precision(setting):
    pipe = setting[0]().to(dtype=torch.bfloat16)
    expected = generate(pipe, PROMPT, setting[1])
    with ea.attach(pipe, TSAM(alpha=0.0)) as handle:
        assert torch.equal(generate(pipe, PROMPT, setting[1]), expected)
    assert handle.maps.dtype == torch.float32
    with ea.attach(pipe, JEDI(groups=[("ab",), ("d",)], alpha=0.1)):
        guided = generate(pipe, PROMPT, setting[1])
    assert guided.dtype == torch.bfloat16 and guided.isfinite().all() and not torch.equal(guided, expected)


@SETTINGS
def test_inference_mode_and_callbacks(setting):
    pipe, seen = setting[0](), []

    def callback(pipe, step, timestep, tensors):
        seen.append(tensors["latents"].clone())
        return {"latents": tensors["latents"] * 0.9}

    with ea.attach(pipe, TSAM()):
        expected = generate(pipe, PROMPT, setting[1], callback_on_step_end=callback)
        with torch.inference_mode():
            found = generate(pipe, PROMPT, setting[1], callback_on_step_end=callback)
    assert torch.equal(found, expected) and len(seen) == 4 and torch.equal(seen[1] * 0.9, expected)


@SETTINGS
def test_the_pass_has_the_scale_of_an_apply_but_not_its_recorders(setting):
    pipe, recorder = setting[0](), ea.MapRecorder("c")
    with ea.attach(pipe, TSAM(steps=(0,))) as plain:
        generate(pipe, PROMPT, setting[1])
    with ea.apply(pipe, scale=Constant(2.0), record=recorder), ea.attach(pipe, TSAM(steps=(0,))) as handle:
        generate(pipe, PROMPT, setting[1])
    assert not torch.allclose(handle.maps, plain.maps)
    assert recorder.maps().shape[1] == 1 and recorder.branch_names in (("cond",), ("all",))


def test_what_cannot_be_guided_is_refused_by_name():
    for kind in ("pixart", "qwen", "lumina2"):
        pipe = PIPELINES[kind].make()
        with pytest.raises(
            ValueError, match=r"SD3Transformer2DModel, FluxTransformer2DModel as its only .*Transformer"
        ):
            ea.attach(pipe, TSAM())
    pipe = FLUX[0](tokenizer_2=None)
    embeds = {"prompt_embeds": torch.ones(1, T5, 20), "pooled_prompt_embeds": torch.ones(1, 12)}
    with ea.attach(pipe, TSAM(), prompt="ab"), pytest.raises(ValueError, match="FluxPipeline has no tokenizer"):
        generate(pipe, None, FLUX[1], **embeds)
    pipe = FLUX[0]()
    with ea.attach(pipe, AttendAndExcite(tokens=("f",))), pytest.raises(ValueError, match="'f' is not in the prompt"):
        generate(pipe, PROMPT, FLUX[1])
    pipe = SD3[0]()
    with ea.attach(pipe, AttendAndExcite(tokens=(0,))), pytest.raises(ValueError, match=r"marks, \[0, 6\], got \[0\]"):
        generate(pipe, PROMPT, SD3[1])
    with ea.attach(pipe, TSAM(layers="single")), pytest.raises(ValueError, match="layers='single': no layer of SD3"):
        generate(pipe, PROMPT, SD3[1])


def test_a_call_for_other_latents_is_refused():
    pipe = FLUX[0]()
    call = type(pipe).__call__

    class Tiled(type(pipe)):
        def __call__(self, *args, **kwargs):
            inner = self.scheduler.step

            def step(noise, t, latents, **options):
                return inner(noise, t, latents + 1.0, **options)

            self.scheduler.step = step
            return call(self, *args, **kwargs)

    pipe.__class__ = Tiled
    with (
        ea.attach(pipe, TSAM()),
        pytest.raises(ValueError, match=r"Tiled .* that its scheduler steps"),
    ):
        generate(pipe, PROMPT, FLUX[1])


def test_what_an_editing_pipeline_appends_to_the_latents_stays():
    config = {**CASES["flux"].config, "in_channels": 12, "out_channels": 8}
    torch.manual_seed(0)
    transformer = type(CASES["flux"].make())(**config)
    ids = torch.zeros(10, 3)
    ids[:6, 1], ids[:6, 2] = torch.arange(6) // 2, torch.arange(6) % 2
    ids[6:, 0] = 1.0  # a reference image of 4 tokens
    given = torch.arange(2 * 10 * 12.0).reshape(2, 10, 12)
    latents = latents_in(transformer, {"hidden_states": given, "img_ids": ids})
    assert torch.equal(latents, given[:, :6, :8])
    _, changed = with_latents((), {"hidden_states": given, "a": 1}, latents + 1000.0, "hidden_states")
    expected = given.clone()
    expected[:, :6, :8] += 1000.0
    assert torch.equal(changed["hidden_states"], expected) and changed["a"] == 1
    (positional,), _ = with_latents((given,), {}, latents + 1000.0, "hidden_states")
    assert torch.equal(positional, expected)


CLASSES = {"sd3": ea.TSAMStableDiffusion3Pipeline, "flux": ea.TSAMFluxPipeline}


@SETTINGS
def test_the_pipeline_classes_equal_their_parents_with_attached_guidance(setting, tmp_path):
    parent, options = setting[0](), setting[1]
    expected = generate(parent, PROMPT, options)
    pipe = CLASSES[name_of(setting)].from_pipe(parent)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.transformer is parent.transformer
    before = footprint(parent)
    assert torch.equal(generate(pipe, PROMPT, options, guidance=None), expected) and pipe.last_guidance is None
    assert torch.equal(generate(pipe, PROMPT, options, guidance=TSAM(alpha=0.0)), expected)
    guided = generate(pipe, PROMPT, options)  # T-SAM is the default
    assert not torch.equal(guided, expected) and len(pipe.last_guidance.losses) == 2
    with ea.attach(parent, TSAM()):
        assert torch.equal(generate(parent, PROMPT, options), guided)
    assert footprint(parent) == before
    assert f'"_class_name": "{type(parent).__name__}"' in pipe.to_json_string()


@SETTINGS
def test_the_sheet_shows_the_words_of_every_text(setting):
    pytest.importorskip("matplotlib")
    from PIL import Image

    from entropy_attn.plots.guidance import guidance_sheet

    pipe = setting[0]()
    with ea.attach(pipe, TSAM()) as handle:
        generate(pipe, "ab c", setting[1], **({"prompt_3": "ab d"} if setting is SD3 else {}))
    figure = guidance_sheet(handle, [Image.new("RGB", (16, 24))])
    shown = [
        text.get_text() for axis in figure.axes for text in (axis.title, axis.yaxis.label, *axis.get_yticklabels())
    ]
    assert shown.count("c") >= 1 and ("d" in shown) == (setting is SD3)


def test_a_cache_is_refused():
    from diffusers import FirstBlockCacheConfig

    pipe = FLUX[0]()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with ea.attach(pipe, TSAM()), pytest.raises(ValueError, match=r"FluxPipeline cannot be guided while .* a cache"):
        generate(pipe, PROMPT, FLUX[1])
    pipe.transformer.disable_cache()
    with ea.attach(pipe, TSAM()) as handle:
        generate(pipe, PROMPT, FLUX[1])
    assert len(handle.losses) == 2
