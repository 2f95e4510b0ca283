"""`ea.profile` on a tiny pipeline for each row of the table of models."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("diffusers")

import entropy_attn as ea
from entropy_attn.integrations.diffusers.models import MODELS, model_of
from entropy_attn.pipelines import fixed_size
from tests.support.tiny_pipelines import PIPELINES

TEXT_ONLY = {"lumina2": "context_refiner", "zimage": "context_refiner", "hunyuan-video": "token_refiner"}
OTHER_SIZE = {"zimage": (128, 128)}  # smaller ones are padded to the same number of tokens


def profiled(name: str, **options):
    case = PIPELINES[name]
    pipe, call = case.make(), case.call()
    size = call.pop("height", None), call.pop("width", None)
    call.pop("output_type", None)
    prompts = [call.pop("prompt")] if "prompt" in call else None
    if fixed_size(pipe) is not None:
        sizes = None
    else:
        sizes = [size, OTHER_SIZE.get(name, (size[1], size[1]))]
    given = {
        "sizes": sizes,
        "prompts": prompts,
        "arguments": call,
        "steps": 2 if name == "mochi" else 1,
        "pictures": False,
    }
    return getattr(pipe, case.component), ea.profile(pipe, **{**given, **options})


@pytest.mark.parametrize("name", PIPELINES)
def test_every_row_of_the_table_is_profiled(name: str):
    denoiser, result = profiled(name)
    kinds = set(result.entropy["kind"])
    wanted = {"cross"} if name == "sana" else kinds & {"self", "joint"}
    assert wanted and (name in TEXT_ONLY) == ("text" in kinds)
    layers = set(result.entropy[result.entropy["kind"].isin(wanted)]["layer"])
    assert not any(TEXT_ONLY.get(name, " ") in layer for layer in layers)
    assert set(result.heads["layer"]) == layers
    slopes = result.summary["slope_per_layer"]
    assert set(slopes) == set(result.plan.policies) == ({"off"} if name == "sana" else {"off", "logn"})
    several = len(result.plan.sizes) > 1 and name != "sana"
    for found in slopes.values():
        assert set(found) == layers and all((slope is not None) == several for slope in found.values())
    if name == "sana":
        assert result.regimes is None and any("regimes not measured: the keys of cross" in n for n in result.notes)
    else:
        found = result.regimes
        assert set(found["layer"]) == layers and len(found) == len(layers) * len(result.plan.sizes)
        assert (found["logit_std"] > 0).all() and (found["response"] > -1e-3).all() and (found["entropy"] >= 0).all()
        assert set(result.response["branch"]) == set(result.entropy["branch"])
    for maps in result.maps.values():  # a map over the image's tokens for every layer of self- and joint attention
        assert set(maps) == layers
        assert all(np.isfinite(each).all() and (each >= -1e-5).all() for each in maps.values())
    json.dumps(result.summary)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in denoiser.modules())


def test_every_row_is_tested():
    rows = {model_of(getattr(PIPELINES[name].make(), PIPELINES[name].component)).denoiser for name in PIPELINES}
    assert rows == {model.denoiser for model in MODELS}


def test_a_size_beyond_the_table_of_positions_is_refused():
    with pytest.raises(ValueError, match=r"size 64x16: AuraFlow.* has position embeddings for 8x8 tokens.*exceed 32"):
        profiled("auraflow", sizes=[(64, 16)])
