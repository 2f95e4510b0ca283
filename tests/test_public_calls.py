"""Every public callable refuses a wrong type and wrong values of each of its parameters.

The error is a TypeError, ValueError or Unsupported, is raised before any work, and names the parameter.
"""

from __future__ import annotations

import inspect

import pytest
import torch

pytest.importorskip("diffusers")

import entropy_attn as ea
from entropy_attn.shapes import checker, scenes


class Wrong:
    """A type that no parameter accepts."""

    def __repr__(self) -> str:
        return "<wrong>"


WRONG, NAN, INF = Wrong(), float("nan"), float("inf")
FLAG = [WRONG, 1, "yes", None]
TENSOR = [WRONG, None, "q", [[1.0]], torch.zeros(2, 2, dtype=torch.bool)]
POLICY = [WRONG, 0.2, "logn", True]
RATIO = {
    "train_tokens": [WRONG, 0, -4, 2.5, True, "many"],
    "strength": [WRONG, NAN, INF, "1", True],
    "direction": [WRONG, "left", None],
    "clamp": [WRONG, 1.0, (1,), (2, 1), (NAN, 1), ("a", 1), (None, -1)],
}
KEYS = {**RATIO, "count_text_tokens": FLAG}
GUIDED = {
    "alpha": [WRONG, -1, NAN, "1", True, None],
    "steps": [WRONG, 3, "012", [-1], [1.5]],
    "step_range": [WRONG, 1.0, (1,), (1, NAN), (-1, 1), ("a", "b")],
    "refine_at": [WRONG, 3, "0", [-1]],
    "refine_iters": [WRONG, -1, 1.5, True, None],
    "map_size": [WRONG, 16, (16,), (0, 4), ("a", "b"), (1.5, 2)],
    "layers": [WRONG, 3, "", "(", ("attn",)],
}
MIX = {
    "layers": [WRONG, 3, "", None],
    "steps": [WRONG, 3, "012", (), [-1], [1.5]],
    "branch": [WRONG, "all", True],
}
QKV = {name: torch.zeros(1, 2, 4, 8) for name in ("query", "key", "value")}
CALL = {
    "query": TENSOR, "key": TENSOR, "value": TENSOR,
    "attn_mask": [WRONG, "mask", torch.zeros(3, 3, dtype=torch.bool), torch.zeros(4, 4, dtype=torch.long)],
    "is_causal": [WRONG, "yes"],
    "scale": [WRONG, "0.5", NAN, INF, torch.zeros(3), torch.zeros(3, 2), torch.zeros(2, dtype=torch.long)],
    "enable_gqa": [WRONG, "yes"],
}  # fmt: skip
STATISTICS = {
    **CALL,
    "return_lse": [WRONG, "yes"],
    "return_entropy": [WRONG, "yes"],
    "map_keys": [WRONG, 3, (3, 2), (0, 9), (0, 1, 2), "0:2", slice(0, 4, 2)],
    "key_scale": [WRONG, 1.2, [], [((0, 2), NAN)], [((0, 9), 1.0)], torch.ones(3), torch.ones(4, dtype=torch.long)],
    "key_bias": [WRONG, 1.2, [], [((0, 2), "1")], [(0, 1.0)], torch.full((4,), INF)],
    "key_rows": [WRONG, 3, (0, 2), torch.zeros(4), torch.zeros(4, dtype=torch.long)],  # without keys that they are for
    "statistics": [WRONG, None, "max", ("top",)],
    "mass_keys": [WRONG, (0, 2)],
    "impl": [WRONG, "cuda", None],
}
INFO = {
    "layer": "mid.attn1", "kind": "self", "seqlen_q": 64, "seqlen_k": 64, "num_heads": 8, "head_dim": 8,
}  # fmt: skip
COUNT = [WRONG, 0, -1, 1.5, "64", True]
SIZE = [WRONG, 64, (64,), (0, 64), ("a", "b"), (64.5, 64)]
BOX = (0.0, 0.0, 0.5, 1.0)
BRANCHES = [WRONG, "cond", (), (1, 2), ("a", "a")]
LATENTS = torch.zeros(1, 4, 8, 8)
MAPS = torch.rand(16, 5)
ROW = scenes.Placed(scenes.Kind("red", "circle"), 10.0, 10.0, 5.0)

# name: (callable, valid arguments, {parameter: refused values})
CALLS = {
    "attention": (ea.attention, QKV, STATISTICS),
    "unsupported_reasons": (ea.unsupported_reasons, QKV, STATISTICS),
    "scaled_dot_product_attention": (
        # torch's function accepts a scale of NaN or infinity
        ea.scaled_dot_product_attention, QKV,
        {**CALL, "scale": [WRONG, "0.5", torch.zeros(3)], "dropout_p": [WRONG, -0.5, 1.5, "0.1"]},
    ),
    "EntropyRecorder": (ea.EntropyRecorder, {}, {"per_query": FLAG, "branches": BRANCHES}),
    "ResponseRecorder": (
        ea.ResponseRecorder,
        {},
        {"steps": [WRONG, 3, "01", [-1], [1.5], [], [True]], "branches": BRANCHES},
    ),
    "MapRecorder": (
        ea.MapRecorder,
        {},
        {
            "tokens": [WRONG, "", [], [1.5], -1, ["cat", None], True],
            "size": SIZE,
            "steps": [WRONG, 3, "01", [-1], [1.5], []],
            "special": FLAG,
            "all_branches": FLAG,
            "prompt": [WRONG, 3, [], [3]],
            "branches": BRANCHES,
        },
    ),
    "LayerMapRecorder": (
        ea.LayerMapRecorder,
        {"rows": "image", "keys": "image"},
        {
            "rows": [WRONG, "", [], [1.5], -1, ["cat", None], True, ["cat", (0.5, 0.5)], [(0.5, 1.5)], [(1, 0, 0, 1)]],
            "keys": [WRONG, "", [], -1, ["a", "a"], [(0.5,)], [("a", "b")], [torch.zeros(2, 2)], [torch.ones(3)]],
            "heads": [WRONG, "all", 3, (), (-1,), (0, 0), (1.5,)],
            "layers": [WRONG, "", "(", 3],
            "steps": [WRONG, 3, "01", [-1], [1.5], []],
            "all_branches": FLAG,
            "prompt": [WRONG, 3, [], [3]],
            "branches": BRANCHES,
        },
    ),
    "scale.Fixed": (ea.scale.Fixed, {}, {"value": [WRONG, "1", NAN, INF, True]}),
    "scale.Constant": (
        ea.scale.Constant,
        {"factor": 1.0},
        {"factor": [WRONG, "1", NAN, INF, True, (), (1, NAN), None, 0, -1], "allow_nonpositive": FLAG},
    ),
    "scale.LogN": (ea.scale.LogN, {}, KEYS),
    "scale.LogNoRoot": (ea.scale.LogNoRoot, {}, KEYS),
    "scale.Power": (ea.scale.Power, {"p": 0.5}, {**KEYS, "p": [WRONG, "1", NAN, True, None]}),
    "scale.YaRN": (ea.scale.YaRN, {}, RATIO),
    "scale.TokenRatio": (ea.scale.TokenRatio, {}, RATIO),
    "scale.Steps": (
        ea.scale.Steps,
        {"policy": ea.scale.LogN()},
        {
            "policy": [*POLICY, None],
            "start": [WRONG, -1, 1.5, True, None],
            "stop": [WRONG, 0, 1.5, True],
            "otherwise": POLICY,
        },
    ),
    "scale.DyPE": (ea.scale.DyPE, {}, {**RATIO, "exponent": [WRONG, -1, NAN, INF, "2", True, None]}),
    "scale.Schedule": (
        ea.scale.Schedule,
        {"policy": ea.scale.LogN(), "between": (5.0, 0.5)},
        {
            "policy": [*POLICY, None],
            "between": [WRONG, None, 5.0, (5.0,), (0.5, 5.0), (1.0, 1.0), (NAN, 0.5), ("5", 0.5), (True, 0.5)],
            "of": [WRONG, "noise", None],
            "otherwise": POLICY,
        },
    ),
    "scale.OfBranch": (
        ea.scale.OfBranch,
        {"policy": ea.scale.LogN(), "branch": "uncond"},
        {
            "policy": [*POLICY, None, ea.scale.TACA()],
            "branch": [WRONG, "all", None],
            "otherwise": [*POLICY, ea.scale.TACA()],
        },
    ),
    "scale.Layers": (
        ea.scale.Layers,
        {"policies": {"mid": ea.scale.LogN()}},
        {"policies": [WRONG, {}, {"(": None}, {3: None}, {"mid": 0.2}, "mid", None], "otherwise": POLICY},
    ),
    "scale.Product": (
        ea.scale.Product, {"policies": (ea.scale.LogN(),)}, {"policies": [(WRONG,), (0.2,), (), (None,)]}
    ),
    "scale.LayerFactors": (
        ea.scale.LayerFactors,
        {"factors": {"a": {64: 1.5}}},
        {
            "factors": [
                *[WRONG, 1.5, None, {}, {"a": 1.5}, {"a": {}}, {3: {64: 1.0}}, {"a": {0: 1.0}}, {"a": {64: -1}}],
                *[{"a": {64: NAN}}, {"a": {64: "1"}}, {"a": {64: ()}}, "factors.csv", "absent.json"],
            ],
            "missing": [WRONG, "skip", None],
        },
    ),
    "scale.TACA": (
        ea.scale.TACA,
        {},
        {
            "factor": [WRONG, -1, NAN, INF, "1", True, None],
            "from_timestep": [WRONG, -1, NAN, "970", True],
            "scale": [WRONG, NAN, "1", True],
        },
    ),
    "scale.TargetEntropy": (
        ea.scale.TargetEntropy,
        {},
        {"train_tokens": RATIO["train_tokens"], "per": [WRONG, "row", None], "clamp": [*RATIO["clamp"], None]},
    ),
    "scale.PromptWeights": (
        ea.scale.PromptWeights,
        {"weights": {"cat": 1.5}},
        {
            "weights": [WRONG, None, {}, {"": 1.0}, {-1: 1.0}, {1.5: 1.0}, {"cat": -1}, {"cat": NAN}, {"cat": "2"}],
            "branch": [WRONG, "uncond", True],
            "scale": [WRONG, NAN, "1", True],
        },
    ),
    "scale.Regions": (
        ea.scale.Regions,
        {"regions": {"cat": BOX}},
        {
            "regions": [
                *[WRONG, None, {}, {"": BOX}, {(): BOX}, {"cat": WRONG}, {"cat": BOX[:3]}, {"cat": (0, 0, 2, 1)}],
                *[{"cat": (0.5, 0, 0.5, 1)}, {"cat": torch.zeros(4, 4)}, {"cat": torch.ones(4)}],
            ],
            "inside": [WRONG, NAN, INF, "1", True, None],
            "outside": [WRONG, NAN, INF, "1", True, None],
            "branch": [WRONG, "uncond", True],
            "scale": [WRONG, NAN, "1", True],
        },
    ),
    "scale.needs_train_tokens": (ea.scale.needs_train_tokens, {"policy": None}, {"policy": POLICY}),
    "scale.resolve_scale": (
        ea.scale.resolve_scale,
        {"policy": None, "info": ea.CallInfo(**INFO)},
        {"policy": POLICY, "info": [WRONG, None]},
    ),
    "scale.token_grid": (
        ea.scale.token_grid, {"num_tokens": 16, "latent_size": (8, 8)}, {"num_tokens": COUNT, "latent_size": SIZE}
    ),
    "scale.training_tokens": (
        ea.scale.training_tokens,
        {"num_tokens": 16, "latent_size": (8, 8), "train_size": (8, 8)},
        {"num_tokens": COUNT, "latent_size": SIZE, "train_size": SIZE, "halvings": [WRONG, -1, 1.5, True]},
    ),
    "guidance.TSAM": (
        ea.guidance.TSAM,
        {},
        {**GUIDED, "gamma": [WRONG, -1, NAN, "4"], "variant": [WRONG, "new", None], "target": [WRONG, 3]},
    ),
    "guidance.AttendAndExcite": (
        ea.guidance.AttendAndExcite,
        {"tokens": "cat"},
        {
            **GUIDED,
            "tokens": [WRONG, None, "", [], [1.5], -1],
            "thresholds": [WRONG, 3, {0: "a"}, {0: NAN}, {-1: 0.5}, {"a": 0.5}],
        },
    ),
    "guidance.CONFORM": (
        ea.guidance.CONFORM,
        {"groups": [("red", "cat")]},
        {**GUIDED, "groups": [WRONG, "red", [], ["red"], [()], [(1.5,)]], "temperature": [WRONG, 0, -1, NAN, "1"]},
    ),
    "guidance.JEDI": (
        ea.guidance.JEDI,
        {"groups": [("red", "cat")]},
        {
            **GUIDED,
            "groups": [WRONG, "red", [], ["red"], [()], [(1.5,)]],
            "diversity": [WRONG, -1, NAN, "1"],
            "sign": FLAG,
        },
    ),
    "guidance.SynGen": (
        ea.guidance.SynGen,
        {"pairs": [("red", "cat")]},
        {**GUIDED, "pairs": [WRONG, "red", [], [("red",)], [("a", "b", "c")], [(1.5, 2)]]},
    ),
    "guidance.Custom": (
        ea.guidance.Custom,
        {"function": lambda maps, prompt: maps.sum()},
        {**GUIDED, "function": [WRONG, None, 3], "text_attention": FLAG},
    ),
    "guidance.Guidance": (ea.guidance.Guidance, {}, GUIDED),
    "guidance.RandomDirection": (
        ea.guidance.RandomDirection, {"guidance": ea.guidance.TSAM()},
        {"guidance": [WRONG, None, "tsam"], "seed": [WRONG, -1, 1.5, "0", True]},
    ),
    "guidance.text_self_attention": (
        ea.guidance.text_self_attention,
        {"attentions": torch.rand(2, 1, 4, 4), "input_ids": torch.tensor([[0, 5, 6, 1]]), "eos_token_id": 1},
        {
            "attentions": [WRONG, None, torch.rand(4, 4), torch.ones(2, 1, 4, 4, dtype=torch.long)],
            "input_ids": [WRONG, None, torch.tensor([[0, 1]]), torch.zeros(1, 4)],
            "eos_token_id": [WRONG, 9, None, 1.5],
            "gamma": [WRONG, -1, NAN, "4"],
            "variant": [WRONG, "new"],
            "start_mark": FLAG,
        },
    ),
    "guidance.attention_similarity": (
        ea.guidance.attention_similarity,
        {"maps": MAPS, "size": (4, 4), "tokens": [1, 2]},
        {
            "maps": [WRONG, None, torch.rand(16), torch.ones(16, 5, dtype=torch.long)],
            "size": [WRONG, 16, (3, 4), (16,)],
            "tokens": [WRONG, [7], [-1], ["cat"], [1.5]],
            "variant": [WRONG, "new"],
            "smooth": FLAG,
        },
    ),
    "guidance.tsam_loss": (
        ea.guidance.tsam_loss,
        {"T": torch.eye(2), "S": torch.eye(2)},
        {"T": [WRONG, None, torch.ones(3), torch.eye(3)], "S": [WRONG, None, torch.ones(3), torch.eye(3)]},
    ),
    "guidance.real_tokens": (
        ea.guidance.real_tokens,
        {"input_ids": torch.tensor([[0, 5, 1]]), "eos_token_id": 1},
        {
            "input_ids": [WRONG, None, torch.tensor([0, 1]), torch.zeros(1, 3)],
            "eos_token_id": [WRONG, 9, None],
            "start_mark": FLAG,
        },
    ),
    "guidance.step_size": (
        ea.guidance.step_size,
        {"alpha": 1.0, "step": 0, "num_steps": 2},
        {
            "alpha": [WRONG, NAN, "1"],
            "step": [WRONG, -1, 2, 0.5],
            "num_steps": [WRONG, 0, 1.5],
            "step_range": [WRONG, 1.0, (1,), (-1, 1), (NAN, 1)],
        },
    ),
    "guidance.update_latents": (
        ea.guidance.update_latents,
        {"latents": LATENTS, "gradient": LATENTS, "step_size": 1.0},
        {
            "latents": [WRONG, None, torch.zeros(2)],
            "gradient": [WRONG, None, torch.zeros(2)],
            "step_size": [WRONG, NAN, "1", None],
        },
    ),
    "guidance.input_correction": (
        ea.guidance.input_correction,
        {"scale_model_input": lambda x: x, "latents": LATENTS},
        {"scale_model_input": [WRONG, None, 2.0], "latents": [WRONG, None]},
    ),
    "shapes.load_pipeline": (
        ea.shapes.load_pipeline,
        None,
        {
            "which": [WRONG, "anything", torch.float16, None, ""],
            "dtype": [WRONG, "float16", torch.int8, torch.bool],
            "positions": [WRONG, "interpolated", 1.0, ""],
        },
    ),
    "shapes.scenes.parse_caption": (
        scenes.parse_caption, {"caption": "a red circle"}, {"caption": [WRONG, "a red car", "", None]}
    ),
    "shapes.scenes.place": (
        scenes.place,
        None,
        {
            "request": [WRONG, None, "a red circle"], "size": SIZE, "rng": [WRONG, None, 3], "tries": [WRONG, -1, 1.5],
            "unit": [WRONG, 0, -64, 1.5, "64", True],
        },
    ),
    "shapes.scenes.render": (
        scenes.render, {"placed": [ROW], "size": (64, 64)}, {"placed": [WRONG, [3], None], "size": SIZE}
    ),
    "shapes.checker.find_objects": (
        checker.find_objects, {"image": scenes.render([ROW], (64, 64))}, {"image": [WRONG, None, torch.zeros(3, 3)]}
    ),
    "shapes.checker.check": (
        checker.check,
        {"image": scenes.render([ROW], (64, 64)), "request": scenes.parse_caption("a red circle")},
        {"image": [WRONG, None], "request": [WRONG, None, "a red circle"]},
    ),
    "apply": (
        ea.apply,
        "pipe",
        {
            "pipe_or_denoiser": [WRONG, None, "runwayml/stable-diffusion-v1-5"],
            "scale": [WRONG, 0.2, "logn", True],
            "record": [WRONG, "entropy", [], [WRONG]],
            "layers": [WRONG, "(", "no such layer", None],
            "train_size": [WRONG, 0, (0, 8), "64", (8,), 1.5],
            "rows": [WRONG, "text", None],
            "mix": [WRONG, "nag", ea.mix.NAG, ea.mix.Identity()],
        },
    ),
    "attach": (
        ea.attach,
        "pipe",
        {"pipe": [WRONG, None], "guidance": [WRONG, None, "tsam", ea.guidance.TSAM], "prompt": [WRONG, 3, [], [3]]},
    ),
    "GuidanceBlock": (ea.GuidanceBlock, {}, {"guidance": [WRONG, None, "tsam", ea.guidance.TSAM]}),
    "mix.Mix": (ea.mix.Mix, {}, MIX),
    "mix.NAG": (
        ea.mix.NAG,
        {},
        {
            **MIX,
            "strength": [WRONG, -1, NAN, INF, "4", True, None],
            "tau": [WRONG, 0, -1, NAN, "2", True, None],
            "alpha": [WRONG, -0.1, 1.1, NAN, "1", True, None],
            "text": [WRONG, "trees", torch.ones(3, 4), torch.ones(1, 3, 4).long()],
            "branch": [WRONG, "uncond", None],
        },
    ),
    "mix.SoftPAG": (
        ea.mix.SoftPAG,
        {},
        {
            **MIX,
            "alpha": [WRONG, NAN, INF, "1", True, None],
            "heads": [WRONG, 3, {}, {"(": (0,)}, {3: (0,)}, {"mid": ()}, {"mid": 0}, {"mid": (-1,)}, {"mid": ("0",)}],
        },
    ),
    "mix.OtherScale": (ea.mix.OtherScale, {"scale": 0.1}, {"scale": [WRONG, NAN, INF, "1", True, None]}),
    "mix.OtherText": (ea.mix.OtherText, {}, {"branch": [WRONG, "all", None]}),
    "mix.OwnText": (
        ea.mix.OwnText,
        {"embeds": torch.ones(2, 3, 4)},
        {
            "embeds": [WRONG, None, "trees", torch.ones(3, 4), torch.ones(0, 3, 4), torch.ones(1, 3, 4).long()],
            "mask": [WRONG, "11", torch.ones(3), torch.ones(2, 4), torch.zeros(2, 3), torch.full((2, 3), -1e4)],
            "pooled": [WRONG, "11", torch.ones(4), torch.ones(1, 4), torch.ones(2, 4).long()],
        },
    ),
    "WeakPassGuidance": (
        ea.WeakPassGuidance,
        {"mix": ea.mix.SoftPAG()},
        {
            "mix": [WRONG, "pag", ea.mix.NAG()],
            "scale": [*POLICY, ea.scale.OfBranch(ea.scale.LogN(), "cond")],
            "layers": [WRONG, "(", None],
            "guidance_scale": [WRONG, NAN, "1", True, None],
            "weak_guidance_scale": [WRONG, NAN, "1", True, None],
            "start": [WRONG, -1, 1.0, NAN, "0", True],
            "stop": [WRONG, -1, 1.1, NAN, "1", True],
            "weak_start": [WRONG, -1, 1.0, NAN, "0", True],
            "weak_stop": [WRONG, -1, 1.1, NAN, "1", True],
            "enabled": FLAG,
        },
    ),
    "transformers.register": (
        ea.transformers.register,
        {},
        {"name": [WRONG, None, 3, "", "sdpa", "my_flash", "a-b", "Mine"], "scale": [*POLICY, ea.scale.LogN()]},
    ),
}  # fmt: skip
# Other names of the same objects.
ALIASES = {"guidance.attach": "attach", "scale.CallInfo": "CallInfo"}
# Classes of diffusers, or tested in another file.
ELSEWHERE = {
    "TSAMFluxPipeline",
    "TSAMStableDiffusion3Pipeline",
    "TSAMStableDiffusionPipeline",
    "TSAMStableDiffusionXLPipeline",
    "profile",
    "scale.EntropyAdaptive",
    "transformers.text_attention_maps",
    "transformers.text_self_attention_maps",
}
# Results and types: records that are made in every call and in compiled code, an exception, and type aliases.
RESULTS = {
    "AttentionOutput",
    "CallInfo",
    "Unsupported",
    "guidance.Prompt",
    "mix.Identity",
    "mix.Other",
    "scale.KeyGroups",
    "scale.Kind",
    "scale.Policy",
    "scale.Scale",
    "transformers.Registration",
}
MODULES = ("scale", "guidance", "mix", "shapes", "transformers")
# Torch's function, whose errors describe the problem without the name of the argument.
IN_TORCHS_WORDS = {"scaled_dot_product_attention"}
CASES = [
    pytest.param(name, parameter, value, id=f"{name}-{parameter}-{at}")
    for name, (_, _, wrong) in CALLS.items()
    for parameter, values in wrong.items()
    for at, value in enumerate(values)
]


@pytest.fixture(scope="module")
def pipe():
    return ea.shapes.load_pipeline()


def arguments_of(name, pipe):
    given = CALLS[name][1]
    if given == "pipe":
        given = {"pipe_or_denoiser": pipe} if name == "apply" else {"pipe": pipe, "guidance": ea.guidance.TSAM()}
    if name == "shapes.scenes.place":
        import random

        given = {"request": scenes.parse_caption("a red circle"), "size": (64, 64), "rng": random.Random(0)}
    return dict(given or {})


@pytest.mark.parametrize(("name", "parameter", "value"), CASES)
def test_the_error_of_a_wrong_value_names_the_parameter(name, parameter, value, pipe):
    function, given = CALLS[name][0], arguments_of(name, pipe)
    errors = (TypeError, ValueError, ea.Unsupported)
    with pytest.raises((*errors, RuntimeError, AttributeError) if name in IN_TORCHS_WORDS else errors) as error:
        if name == "scale.Product":
            function(*value)
        else:
            function(**{**given, parameter: value})
    said = str(error.value)
    assert parameter in said or name in IN_TORCHS_WORDS or (name, parameter) == ("scale.Product", "policies"), said
    assert "internal" not in said and "unexpected" not in said


@pytest.mark.parametrize("name", [name for name in CALLS if name != "shapes.load_pipeline"])
def test_valid_values_are_accepted(name, pipe):
    given = arguments_of(name, pipe)
    if name == "scale.Product":
        CALLS[name][0](*given["policies"])
        return
    made = CALLS[name][0](**given)
    if name in ("apply", "attach", "transformers.register"):
        made.remove()


def test_every_public_callable_and_parameter_is_tested():
    public = {name: getattr(ea, name) for name in ea.__all__ if name not in MODULES}
    for module in (getattr(ea, name) for name in MODULES):
        public |= {f"{module.__name__.split('.')[-1]}.{name}": getattr(module, name) for name in module.__all__}
    assert ea.guidance.attach is ea.attach
    callables = {name: value for name, value in public.items() if callable(value)}
    assert all(public[alias] is public[name] for alias, name in ALIASES.items())
    assert set(callables) - ELSEWHERE - RESULTS - set(CALLS) - set(ALIASES) == set()
    for name, (function, _, wrong) in CALLS.items():
        parameters = inspect.signature(function).parameters
        assert set(wrong) == set(parameters), name
