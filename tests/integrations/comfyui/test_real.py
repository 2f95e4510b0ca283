"""The nodes in ComfyUI itself: COMFYUI_PATH is its folder, and its requirements are installed beside this package.

COMFYUI_PATH=... pytest tests/integrations/comfyui/test_real.py

Models have its classes and random weights, and are sampled by its own sampler on the CPU.
"""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import math
import os
import sys
from pathlib import Path

import pytest
import torch

from tests.integrations.comfyui.loading import FOLDER, part

PATH = os.environ.get("COMFYUI_PATH")
pytestmark = pytest.mark.skipif(not PATH, reason="COMFYUI_PATH is not set: ComfyUI itself is not tested")
IDS = {f"EntropyAttn{name}" for name in ("LogNScale", "Probe", "ProbeRead", "WordMaps", "WordMapsOverlay")}


@pytest.fixture(scope="module")
def comfy():
    """Its modules, on the CPU where torch has no GPU."""
    sys.path.append(str(PATH))
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    for name in ("model_patcher", "sample", "sd", "supported_models"):
        importlib.import_module(f"comfy.{name}")
    return sys.modules["comfy"]


def source(name: str) -> ast.Module:
    return ast.parse((Path(str(PATH)) / name).read_text(encoding="utf-8"))


def test_every_attention_function_has_the_signature_that_calls_are_read_by():
    wanted = list(part("call").SIGNATURE.parameters.values())
    functions = [
        node
        for node in ast.walk(source("comfy/ldm/modules/attention.py"))
        if isinstance(node, ast.FunctionDef) and any(ast.unparse(found) == "wrap_attn" for found in node.decorator_list)
    ]
    assert len(functions) >= 6
    for function in functions:
        names = [argument.arg for argument in function.args.args]
        assert [name[0] for name in names[:3]] == ["q", "k", "v"]
        assert names[3:] == [parameter.name for parameter in wanted[3:-1]], function.name
        defaults = [ast.literal_eval(found) for found in function.args.defaults]
        assert defaults == [parameter.default for parameter in wanted[4:-1]] and function.args.kwarg.arg == "kwargs"


def test_names_that_are_repeated_here_are_its_names(comfy):
    from comfy.patcher_extension import WrappersMP

    tracker, families = part("tracker"), part("families")
    assert (tracker.APPLY_MODEL, tracker.OUTER_SAMPLE) == (WrappersMP.APPLY_MODEL, WrappersMP.OUTER_SAMPLE)
    for name in families.TRAIN_PIXELS:
        assert inspect.isclass(getattr(comfy.supported_models, name))
    from comfy.ldm.flux.model import Flux
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    assert set(families.NAMES) == {found.__name__ for found in (Flux, OpenAISignatureMMDITWrapper, UNetModel)}


def patcher(comfy, config_class: str, unet_config: dict, seed: int = 0):
    config = getattr(comfy.supported_models, config_class)(unet_config)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, device="cpu")
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.diffusion_model.named_parameters():
            parameter.normal_(0.0, 0.02 if name.endswith("bias") else 1.0 / math.sqrt(max(parameter[0].numel(), 1)))
        for buffer in model.diffusion_model.buffers():
            buffer.normal_(0.0, 0.1)
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def unet(comfy):
    return patcher(
        comfy,
        "SD15",
        {
            "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": [1, 2],
            "num_res_blocks": [1, 1], "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1],
            "transformer_depth_middle": 1, "use_spatial_transformer": True, "use_linear_in_transformer": False,
            "context_dim": 32, "legacy": False, "adm_in_channels": None, "use_temporal_attention": False,
        },
    )  # fmt: skip


def flux(comfy):
    return patcher(
        comfy,
        "Flux",
        {
            "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 8,
            "context_in_dim": 32, "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1,
            "depth_single_blocks": 2, "axes_dim": [4, 6, 6], "theta": 10000, "qkv_bias": True, "guidance_embed": True,
        },
    )  # fmt: skip


def sd3(comfy):
    embed = {"target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 128}}
    return patcher(
        comfy,
        "SD3",
        {
            "in_channels": 16, "pos_embed_scaling_factor": None, "patch_size": 2, "depth": 2, "input_size": None,
            "adm_in_channels": 8, "context_embedder_config": embed, "num_patches": 64, "pos_embed_max_size": 8,
            "x_block_self_attn_layers": [0], "context_size": 32,
        },
    )  # fmt: skip


MODELS = {"unet": (unet, 4), "flux": (flux, 16), "sd3": (sd3, 16)}


def text(seed: int, length: int = 77) -> list:
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.randn(1, 8, generator=generator)
    return [[torch.randn(1, length, 32, generator=generator), {"pooled_output": pooled, "guidance": 3.0}]]


def sample(comfy, model, channels, size, *, steps=2, positive=None, negative=None, cfg=2.0):
    """ComfyUI's sampler: euler, with classifier-free guidance."""
    latent = torch.zeros(1, channels, *size)
    noise = comfy.sample.prepare_noise(latent, 3)
    return comfy.sample.sample(
        model, noise, steps, cfg, "euler", "simple", positive or text(1), negative or text(2), latent, seed=3
    )


def by_hand(model, factor_of):
    """A clone with its attention computed by the formula in float64: a factor by the numbers of queries and keys."""

    def override(func, q, k, v, heads, mask=None, skip_reshape=False, skip_output_reshape=False, **kwargs):
        assert mask is None and not skip_output_reshape
        if not skip_reshape:
            q, k, v = (t.reshape(*t.shape[:2], heads, -1).transpose(1, 2) for t in (q, k, v))
        factor = factor_of.get((q.shape[2], k.shape[2]), 1.0) / math.sqrt(q.shape[-1])
        out = (q.double() @ k.double().mT * factor).softmax(-1) @ v.double()
        return out.to(v.dtype).transpose(1, 2).flatten(2)

    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = override
    return clone


# What is trained on 64 pixels, 8 x 8 latents, is sampled with other ones.
CASES = {
    "unet": ((12, 14), {(168, 168): math.log(168) / math.log(64), (42, 42): math.log(42) / math.log(16)}),
    "flux": ((11, 14), {(42 + 77, 42 + 77): math.log(42) / math.log(16)}),
    "sd3": ((11, 14), {(42 + 77, 42 + 77): math.log(42) / math.log(16), (42, 42): math.log(42) / math.log(16)}),
}


@pytest.mark.parametrize("name", MODELS)
def test_samples_are_those_of_the_formula(comfy, name):
    make, channels = MODELS[name]
    size, ratios = CASES[name]
    model = make(comfy)
    chain, scale = part("chain"), part("scale")
    scaled = chain.extended(model, scale=scale.scale_of(model, train_size=64, strength=4.0))
    found = sample(comfy, scaled, channels, size)
    wanted = sample(comfy, by_hand(model, {key: ratio**2.0 for key, ratio in ratios.items()}), channels, size)
    plain = sample(comfy, model, channels, size)
    rounding = (sample(comfy, by_hand(model, {}), channels, size) - plain).abs().max()
    assert (found - wanted).abs().max() <= max(4 * rounding, 1e-4) < 0.05 * (wanted - plain).abs().max()


@pytest.mark.parametrize("name", MODELS)
def test_the_probe_sees_every_call_and_changes_nothing(comfy, name):
    make, channels = MODELS[name]
    size, ratios = CASES[name]
    model, found = part("probe").probed(make(comfy))
    plain = make(comfy)
    assert torch.equal(sample(comfy, model, channels, size), sample(comfy, plain, channels, size))
    rows = found.rows()
    assert {row["branch"] for row in rows} == {"cond", "uncond"}
    assert {row["step"] for row in rows} == {0, 1} and len({row["sigma"] for row in rows}) == 2
    joint = {keys for _, keys in ratios}
    assert {row["seqlen_k"] for row in rows if row["kind"] != "cross"} == joint
    calls = {"unet": 2 * 7, "flux": 3, "sd3": 3}[name]
    assert len({row["layer"] for row in rows}) == calls and len(rows) == 2 * 2 * calls
    assert all(0 < row["relative"] <= 1 for row in rows)


def test_a_level_with_as_many_tokens_as_the_text_is_told_apart(comfy):
    """7 x 11 tokens, and 77 of text."""
    model, found = part("probe").probed(unet(comfy))
    sample(comfy, model, 4, (14, 22))
    kinds = {(row["layer"].rsplit(".", 1)[1], row["kind"]) for row in found.rows() if row["seqlen_q"] == 77}
    assert kinds == {("attn1", "self"), ("attn2", "cross")}
    assert {row["seqlen_k"] for row in found.rows() if row["seqlen_q"] == 77} == {77}


def clip(comfy):
    """Its CLIP with its tokenizer, and a text encoder of two layers with random weights."""
    from comfy import sd1_clip, supported_models_base

    target = supported_models_base.ClipTarget(sd1_clip.SD1Tokenizer, sd1_clip.SD1ClipModel)
    small = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    found = comfy.sd.CLIP(target, model_options={"clip_l_model_config": small})
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in found.cond_stage_model.parameters():
            parameter.normal_(0.0, 0.1)
    return found


def test_word_maps_are_those_of_the_words_in_its_own_text(comfy):
    text_encoder = clip(comfy)
    prompt = "a (red:1.3) circle beside a chartreuse square"
    model, positive, maps = part("words").mapped(unet(comfy), text_encoder, prompt, "red, chartreuse, square")
    (tokens,) = text_encoder.tokenize(prompt)["l"]
    pieces = [text_encoder.tokenizer.clip_l.inv_vocab[token] for token, _ in tokens]
    negative = text_encoder.encode_from_tokens_scheduled(text_encoder.tokenize("grey"))
    sample(comfy, model, 4, (12, 14), positive=positive, negative=negative)
    recorder = maps.recorder
    at = dict(zip(recorder.tokens, recorder.positions, strict=True))
    for word, positions in at.items():
        assert "".join(pieces[p] for p in positions).replace("</w>", "") == word
    assert len(at["chartreuse"]) > 1 and recorder.branch_names == ("cond",)

    kept = []

    def override(func, q, k, v, heads, **options):
        if k.shape[1] == 77 and (q.shape[1] == math.prod(recorder.map_size)):
            apart = [t.unflatten(-1, (heads, -1)).transpose(1, 2).double() for t in (q, k)]
            p = (apart[0] @ apart[1].mT / math.sqrt(apart[0].shape[-1])).softmax(-1).mean(1)
            row = options["transformer_options"]["cond_or_uncond"].index(0)
            kept.append(torch.stack([p[row][:, list(positions)].mean(-1) for positions in at.values()]))
        return func(q, k, v, heads, **options)

    plain = unet(comfy)
    plain.model_options["transformer_options"]["optimized_attention_override"] = override
    sample(comfy, plain, 4, (12, 14), positive=positive, negative=negative)
    wanted = torch.stack(kept).mean(0).unflatten(-1, recorder.map_size).float()
    torch.testing.assert_close(recorder.maps()[0, 0], wanted, rtol=1e-4, atol=1e-6)


def test_another_prompt_at_its_sampler_is_refused(comfy):
    text_encoder = clip(comfy)
    model, _, _ = part("words").mapped(unet(comfy), text_encoder, "a red circle", "red")
    with pytest.raises(ValueError, match="expected the sampler's positive prompt to be 'a red circle'"):
        sample(comfy, model, 4, (8, 8), positive=text(1), negative=text(2))


def test_it_loads_the_folder_and_lists_the_nodes(comfy, tmp_path):
    import nodes

    linked = tmp_path / "entropy_attn_nodes"
    linked.symlink_to(FOLDER)
    assert asyncio.run(nodes.load_custom_node(str(linked)))
    assert IDS <= set(nodes.NODE_CLASS_MAPPINGS)
    for name in IDS:
        node = nodes.NODE_CLASS_MAPPINGS[name]
        inputs = node.INPUT_TYPES()
        assert all("tooltip" in options for _, options in inputs["required"].values())
        assert len(node.RETURN_TYPES) == len(node.define_schema().outputs)


def test_the_nodes_run_as_it_runs_them(comfy, tmp_path):
    import nodes

    linked = tmp_path / "entropy_attn_nodes"
    linked.symlink_to(FOLDER)
    assert asyncio.run(nodes.load_custom_node(str(linked)))
    run = {name: nodes.NODE_CLASS_MAPPINGS[name] for name in IDS}
    inputs = run["EntropyAttnLogNScale"].INPUT_TYPES()["required"]
    settings = {name: options["default"] for name, (_, options) in inputs.items() if name != "model"}
    (model,) = run["EntropyAttnLogNScale"].EXECUTE_NORMALIZED(model=unet(comfy), **settings).result
    model, probe = run["EntropyAttnProbe"].EXECUTE_NORMALIZED(model=model).result
    model, positive, maps = (
        run["EntropyAttnWordMaps"]
        .EXECUTE_NORMALIZED(model=model, clip=clip(comfy), text="a red circle", words="red")
        .result
    )
    latent = sample(comfy, model, 4, (8, 12), positive=positive, negative=text(2))
    image, table = (
        run["EntropyAttnProbeRead"].EXECUTE_NORMALIZED(probe=probe, samples={"samples": latent}, kind="cross").result
    )
    overlays, _ = (
        run["EntropyAttnWordMapsOverlay"]
        .EXECUTE_NORMALIZED(maps=maps, images=torch.rand(1, 64, 96, 3), strength=0.5)
        .result
    )
    assert image.ndim == 4 and len(table.splitlines()) == 1 + 2 * 2 * 14 and overlays.shape == (1, 64, 96, 3)
