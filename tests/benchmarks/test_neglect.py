"""The model that neglects objects it knows: its captions, its silenced layers, and its recipe at toy size."""

from __future__ import annotations

import argparse
import random
import sys

import pytest
import torch

from benchmarks.common import read_rows
from benchmarks.guidance.neglect import compare, images, maps, train
from benchmarks.guidance.neglect.captions import OBJECTS, fixed_captions, random_caption, tokens_of
from benchmarks.guidance.neglect.model import coarse_cross_attention, cut_at_caption, silence_coarse
from benchmarks.guidance.trials import CFG
from entropy_attn.guidance import RandomDirection
from entropy_attn.integrations.guidance.forward import layers_by_size
from entropy_attn.prompts import Text
from entropy_attn.shapes import load_pipeline
from entropy_attn.shapes.scenes import KINDS, parse_caption


@pytest.fixture(scope="module")
def pipe():
    pipe = load_pipeline()
    silence_coarse(pipe.unet)
    return pipe


@pytest.mark.parametrize("objects", OBJECTS)
def test_captions_fill_the_text_without_padding(objects, pipe):
    cut_at_caption(pipe, objects)
    for request in fixed_captions(20, objects, seed=0):
        text = Text(request.caption(), pipe.tokenizer)
        assert text.real == tuple(range(1, tokens_of(objects) - 1)) and len(text) == tokens_of(objects)
        assert parse_caption(request.caption()) == request and request.total == objects
        for words in ([kind.colour for kind in request.kinds], [kind.shape for kind in request.kinds]):
            assert len(set(words)) == objects


def test_fixed_captions_differ_and_do_not_depend_on_their_number():
    few, many = fixed_captions(10, 3, seed=1), fixed_captions(200, 3, seed=1)
    assert many[:10] == few and len({request.caption() for request in many}) == 200
    assert fixed_captions(10, 3, seed=2) != few
    with pytest.raises(ValueError, match="total: expected 1 to 24 captions of 1 objects, got 25"):
        fixed_captions(25, 1, seed=1)


def test_all_kinds_are_trained():
    rng = random.Random(0)
    assert {kind for _ in range(500) for kind in random_caption(rng, 3).kinds} == set(KINDS)


def test_only_maps_of_256_tokens_reach_the_image(pipe):
    from entropy_attn.integrations.diffusers.apply import plain_routing

    unet, coarse = pipe.unet, coarse_cross_attention(pipe.unet)
    by_size = layers_by_size(plain_routing(unet), (16, 16))
    assert set(coarse) == {name for size, names in by_size.items() if size != (16, 16) for name in names}
    assert len(by_size[16, 16]) == 3 and coarse
    seen = []
    handles = [module.register_forward_hook(lambda m, i, out: seen.append(out)) for module in coarse.values()]
    unet(torch.randn(1, 4, 16, 16), 500, torch.randn(1, 13, 128))
    for handle in handles:
        handle.remove()
    assert len(seen) == len(coarse) and all(not out.any() for out in seen)


@pytest.mark.slow
def test_training_resumes_as_if_it_had_not_been_stopped(tmp_path):
    settings = {"scenes": 4, "batch": 2, "rate": 1e-3, "ema": 0.9, "every": 10, "looked": 1}
    train.train(tmp_path / "stopped", 1, **settings)
    resumed = train.train(tmp_path / "stopped", 2, **settings).unet.state_dict()
    whole = train.train(tmp_path / "whole", 2, **settings).unet.state_dict()
    assert [row["step"] for row in read_rows(tmp_path / "stopped" / "look.csv")] == ["1", "2"]
    before = load_pipeline().unet.state_dict()
    changed = 0
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)
        changed += not torch.equal(value, before[name])
        if ".attn2.to_out" in name and ("down_blocks.1" in name or "mid" in name or "up_blocks.1" in name):
            assert not value.any(), name
    assert changed > len(whole) // 2


def test_arms_share_maps_and_noise():
    case = images.Case(images.REPORTED, 3, 5, 2)

    def noise(offset):
        return torch.randn(4, generator=case.generator(offset))

    assert torch.equal(noise(0), noise(0)) and not torch.equal(noise(0), noise(images.SEED_OFFSET))
    for name in (*compare.METHODS, images.ORACLE):
        guidance = images.Arm(name, "2.5", "0-4").guidance()
        assert guidance.map_size == (16, 16) and guidance.alpha == 2.5 and tuple(guidance.steps) == (0, 1, 2, 3, 4)
    control = images.Arm("random: conform", "5", "1-2").guidance()
    assert isinstance(control, RandomDirection) and (control.alpha, control.map_size) == (5.0, (16, 16))
    assert images.Arm(images.OFF).guidance() is None


def test_summary_by_hand():
    seed, oracle, method = (
        images.Arm(*name) for name in ((images.OTHER_SEED,), (images.ORACLE, "80"), ("syngen", "1"))
    )
    found = {
        seed: ([True] * 2 + [False] * 8, [False] * 4),
        oracle: ([True] * 10, [True] + [False] * 3),
        method: ([False] + [True] * 2 + [False] * 7, [False] * 4),
    }
    rows = {row["arm"]: row for row in compare.summarize(found)}
    assert rows["oracle map"]["mended"] == 10 and rows["oracle map"]["mended_share"] == "1.0000"
    assert (rows["oracle map"]["more_than_seed"], rows["oracle map"]["less_than_seed"]) == (8, 0)
    assert rows["oracle map"]["p"] == "0.00781" and rows["oracle map"]["p_holm"] == "0.0156"  # 2 / 2^8, twice
    assert (rows["syngen"]["more_than_seed"], rows["syngen"]["less_than_seed"], rows["syngen"]["p"]) == (1, 1, "1")
    assert rows["another seed"]["p"] == rows["another seed"]["p_holm"] == ""
    assert rows["oracle map"]["damaged"] == 1 and rows["oracle map"]["succeeded"] == 4


def test_the_weaker_of_equal_strengths_is_chosen(monkeypatch):
    monkeypatch.setattr(compare, "ALPHAS", {"syngen": (0.3125, 1.25, 5.0)})
    marks = {"5": (1, 0), "1.25": (2, 1), "0.3125": (1, 0)}  # mended, damaged of 4
    monkeypatch.setattr(
        compare,
        "shares",
        lambda images, pipe, arm, *rest: tuple([True] * n + [False] * (4 - n) for n in marks[arm.alpha]),
    )
    rows = compare.choose(None, None, [("syngen", "0-6")], ([0] * 4, [0] * 4))
    assert [row["alpha"] for row in rows if row["chosen"]] == ["0.3125"]


@pytest.mark.parametrize("text", ["3", "4-3", "0-10", "a-b", "-1-2"])
def test_windows_are_checked(text):
    assert compare.window("0-9") == "0-9"
    with pytest.raises(argparse.ArgumentTypeError, match=f"expected FIRST-LAST from 0-0 to 9-9, got '{text}'"):
        compare.window(text)


@pytest.mark.slow
def test_from_training_to_the_tables(tmp_path, monkeypatch):
    def run(module, *options):
        monkeypatch.setattr(sys, "argv", ["x", *map(str, options)])
        module.main()

    model = tmp_path / "model"
    run(train, "--work", tmp_path, "--steps", 1, "--scenes", 2, "--batch", 2, "--looked", 1, "--export", model)
    assert images.CFG == CFG and load_pipeline().tokenizer.model_max_length == 77
    files = ("--model", model, "--objects", 2)
    to = ("--images", tmp_path / "m.csv", "--drawn", tmp_path / "d.csv", "--csv", tmp_path / "auc.csv")
    run(maps, *files, "--captions", 2, "--seeds", 1, *to)
    assert len(read_rows(tmp_path / "m.csv")) == 2
    assert {(row["size"], row["split"]) for row in read_rows(tmp_path / "auc.csv")} == {("16x16", "all")}

    monkeypatch.setattr(images, "STEPS", 2)
    monkeypatch.setattr(compare, "ALPHAS", {images.ORACLE: (80.0,), "syngen": (1.0,)})
    monkeypatch.setattr(compare, "CAPTIONS", dict.fromkeys(compare.CAPTIONS, 4))
    # The model draws what it likes; only the machinery is tested, so presence is the parity of the caption.
    made = images.make

    def alternating(pipe, arm, batch, *rest):
        return [row | {"presence": str(int(row["caption"]) % 2)} for row in made(pipe, arm, batch, *rest, steps=2)]

    monkeypatch.setattr(images, "make", alternating)
    options = ("--methods", "syngen", "--guided", "0-0", "--failed", 2, "--succeeded", 2, "--tried", 1, 1)
    outputs = ("--images", tmp_path / "i.csv", "--selection", tmp_path / "s.csv", "--csv", tmp_path / "c.csv")
    for _ in range(2):  # the second run makes nothing again
        run(compare, *files, *options, *outputs)
        assert len(read_rows(tmp_path / "i.csv")) == 2 * images.BATCH + 2 * 2 + 4 * 4
    assert [row["arm"] for row in read_rows(tmp_path / "c.csv")] == [
        "another seed", "oracle map", "syngen", "random: syngen",
    ]  # fmt: skip
