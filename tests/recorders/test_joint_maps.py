"""Maps of words in joint attention: tiny pipelines of Flux and Stable Diffusion 3, against float64 softmaxes."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import FluxPipeline, StableDiffusion3Pipeline
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch.overrides import TorchFunctionMode
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from entropy_attn.integrations.diffusers import apply
from entropy_attn.prompts import JoinedText, TextPart
from entropy_attn.recorders.entropy import EntropyRecorder
from entropy_attn.recorders.maps import MapRecorder
from entropy_attn.scale import CallInfo, Fixed
from tests.support.tiny_denoisers import CASES
from tests.support.tiny_models import make_tokenizer, make_vae
from tests.support.tiny_pipelines import PIPELINES, flow

CLIP, T5 = 7, 9  # positions
STEPS = 2


@functools.cache
def t5_tokenizer() -> PreTrainedTokenizerFast:
    """One piece per letter, with T5's mark at the beginning of a word."""
    letters = "abcdefghijklmnopqrstuvwx"
    pieces = ["<pad>", "</s>", "<unk>", *(f"▁{letter}" for letter in letters), *letters]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=2))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    marks = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **marks)


def clip(kind: type, width: int, **options: Any) -> Any:
    torch.manual_seed(5)
    config = CLIPTextConfig(
        vocab_size=50, hidden_size=width, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=CLIP, bos_token_id=48, eos_token_id=49, **options,
    )  # fmt: skip
    return kind(config).eval()


def t5() -> T5EncoderModel:
    torch.manual_seed(6)
    config = T5Config(vocab_size=51, d_model=20, d_kv=8, d_ff=8, num_layers=1, num_heads=2, dropout_rate=0.0)
    return T5EncoderModel(config).eval()


def flux(**parts: Any) -> FluxPipeline:
    found = {
        "transformer": CASES["flux"].make(),
        "vae": None,
        "scheduler": flow(),
        "text_encoder": clip(CLIPTextModel, 12),
        "tokenizer": make_tokenizer(),
        "text_encoder_2": t5(),
        "tokenizer_2": t5_tokenizer(),
    }
    pipe = FluxPipeline(**{**found, **parts})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd3(**parts: Any) -> StableDiffusion3Pipeline:
    found = {
        "transformer": CASES["sd3"].make(),
        "vae": make_vae(),
        "scheduler": flow(),
        "text_encoder": clip(CLIPTextModelWithProjection, 8, projection_dim=6),
        "tokenizer": make_tokenizer(),
        "text_encoder_2": clip(CLIPTextModelWithProjection, 8, projection_dim=6),
        "tokenizer_2": make_tokenizer(),
        "text_encoder_3": t5(),
        "tokenizer_3": t5_tokenizer(),
    }
    pipe = StableDiffusion3Pipeline(**{**found, **parts})
    pipe.set_progress_bar_config(disable=True)
    return pipe


# Pipeline, its arguments, the grid of the image, number of text positions, order of text and image
FLUX = (flux, {"height": 96, "width": 64, "max_sequence_length": T5, "guidance_scale": 3.5}, (6, 4), T5, "first")
SD3 = (sd3, {"height": 24, "width": 16, "max_sequence_length": T5, "guidance_scale": 4.0}, (6, 4), CLIP + T5, "last")


def generate(pipe: Any, prompt: Any, options: dict[str, Any], **changes: Any) -> Any:
    given = {**options, "num_inference_steps": STEPS, "output_type": "latent", **changes}
    return pipe(prompt, generator=torch.Generator().manual_seed(3), **given).images


class Probabilities(TorchFunctionMode):
    """For each joint attention call: head-averaged probabilities (batch, grid, text) of the image over the text."""

    def __init__(self, grid: tuple[int, int], text: int, order: str):
        super().__init__()
        self.image, self.text, self.order, self.calls = grid[0] * grid[1], text, order, []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is F.scaled_dot_product_attention:
            query, key = (args[0], args[1]) if args else (kwargs["query"], kwargs["key"])
            if query.shape[-2] == self.image + self.text:
                found = (query.double() @ key.double().mT * query.shape[-1] ** -0.5).softmax(-1).mean(1)
                start = self.text if self.order == "first" else 0
                keys = slice(0, self.text) if self.order == "first" else slice(self.image, None)
                self.calls.append(found[:, start : start + self.image, keys].float())
        return func(*args, **(kwargs or {}))


def expected(setting: tuple, prompt: Any, **changes: Any) -> list[torch.Tensor]:
    make, options, grid, text, order = setting
    with Probabilities(grid, text, order) as oracle:
        generate(make(), prompt, options, **changes)
    return oracle.calls


def recorded(setting: tuple, prompt: Any, recorder: MapRecorder, **changes: Any) -> MapRecorder:
    make, options, *_ = setting
    pipe = make()
    with apply(pipe, scale=None, record=recorder):
        generate(pipe, prompt, options, **changes)
    return recorder


def grids(maps: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """(image tokens, words) as (words, rows, columns)."""
    return maps.mT.unflatten(-1, grid)


def test_flux_by_word():
    """T5's text comes first: "ab" is at its positions 0 and 1, the two "c" are at 2 and 3."""
    calls = expected(FLUX, "ab c c")
    mean = torch.stack(calls).mean(0)[0]
    recorder = recorded(FLUX, "ab c c", MapRecorder(("ab", "c")))
    assert recorder.positions == ((0, 1), (2, 3)) and recorder.branch_names == ("all",)
    assert recorder.map_size == (6, 4) and len(recorder.layers) * STEPS == len(calls) == 3 * STEPS
    words = torch.stack([mean[:, :2].mean(-1), mean[:, 2:4].mean(-1)], dim=-1)
    torch.testing.assert_close(recorder.maps()[0, 0], grids(words, (6, 4)), rtol=1e-4, atol=1e-5)
    every = recorded(FLUX, "ab c c", MapRecorder())
    assert every.tokens == ("a", "b", "c", "c")
    full = recorded(FLUX, "ab c c", MapRecorder(special=True)).maps()
    assert full.shape[2] == T5 and (full.sum(2) < 1).all()  # normalized over all keys, including those of the image


def test_sd3_by_word():
    """The image comes first, then CLIP's text with its start token, then T5's text."""
    calls = expected(SD3, "ab c")
    mean = torch.stack(calls).mean(0)[1]  # the conditional half
    recorder = recorded(SD3, "ab c", MapRecorder(("ab", "c")))
    assert recorder.positions == ((1, 2, CLIP, CLIP + 1), (3, CLIP + 2)) and recorder.branch_names == ("cond",)
    assert len(recorder.layers) * STEPS == len(calls) == 2 * STEPS  # self-attention of the image is not recorded
    words = torch.stack([mean[:, list(positions)].mean(-1) for positions in recorder.positions], dim=-1)
    torch.testing.assert_close(recorder.maps()[0, 0], grids(words, (6, 4)), rtol=1e-4, atol=1e-5)
    every = recorded(SD3, "ab c", MapRecorder())
    assert every.tokens == ("a", "b", "c") * 2
    assert torch.equal(every.heat_map(5), every.maps()[0, 0, 5])
    with pytest.raises(ValueError, match="token: expected a label that is there once, got 'c'"):
        every.heat_map("c")


@pytest.mark.parametrize("setting", [FLUX, SD3], ids=["flux", "sd3"])
def test_maps_if_the_rows_of_the_image_are_a_separate_call(setting):
    """With rows="image"; here with the default scale, so that the maps are the same."""
    make, options, *_ = setting
    together, apart, pipe = MapRecorder("c"), MapRecorder("c"), make()
    for recorder, rows in ((together, "all"), (apart, "image")):
        with apply(pipe, scale=Fixed(), record=[recorder, EntropyRecorder()], rows=rows):
            generate(pipe, "ab c", options)
    torch.testing.assert_close(apart.maps(), together.maps(), rtol=1e-4, atol=1e-6)


def test_flux_with_a_negative_prompt():
    """It is encoded separately, after the prompt, and the denoiser is called for it separately."""
    guided = {"true_cfg_scale": 3.0, "negative_prompt": "d"}
    calls = expected(FLUX, "ab c", **guided)
    per_pass = len(calls) // (2 * STEPS)
    of_pass = [torch.stack(calls[n * per_pass : (n + 1) * per_pass]).mean(0)[0] for n in range(2 * STEPS)]
    cond, uncond = (torch.stack(of_pass[n::2]).mean(0)[:, 2:3] for n in (0, 1))
    alone = recorded(FLUX, "ab c", MapRecorder("c"), **guided)
    assert alone.branch_names == ("cond",) and alone.positions == ((2,),)
    torch.testing.assert_close(alone.maps()[0, 0], grids(cond, (6, 4)), rtol=1e-4, atol=1e-5)
    both = recorded(FLUX, "ab c", MapRecorder("c", all_branches=True), **guided)
    assert both.branch_names == ("cond", "uncond")
    torch.testing.assert_close(both.maps()[0, 0], alone.maps()[0, 0])
    torch.testing.assert_close(both.maps()[1, 0], grids(uncond, (6, 4)), rtol=1e-4, atol=1e-5)


def test_prompts_of_the_other_encoders():
    """T5 gets the second prompt of Flux and the third of Stable Diffusion 3, if given."""
    second = recorded(FLUX, "ab", MapRecorder("cd"), prompt_2="a cd")
    assert second.positions == ((1, 2),)
    third = recorded(SD3, "ab", MapRecorder(("ab", "cd")), prompt_3="a cd")
    assert third.positions == ((1, 2), (CLIP + 1, CLIP + 2))
    with pytest.raises(ValueError, match="'cd' is not in the prompt"):
        recorded(FLUX, "a cd", MapRecorder("cd"), prompt_2="ab")


def test_sd3_without_t5():
    """Zeros replace its text; they do not count as words."""
    make = functools.partial(sd3, text_encoder_3=None)
    recorder = recorded((make, *SD3[1:]), "ab c", MapRecorder(("ab", "c")))
    assert recorder.positions == ((1, 2), (3,))
    assert recorded((make, *SD3[1:]), "ab c", MapRecorder((CLIP + 2,))).tokens == (str(CLIP + 2),)


def test_a_batch_of_prompts_and_images():
    recorder = recorded(SD3, ["c", "ab c"], MapRecorder("c"), num_images_per_prompt=2)
    mean = torch.stack(expected(SD3, ["c", "ab c"], num_images_per_prompt=2)).mean(0)[4:]
    for image, positions in enumerate([(1, CLIP)] * 2 + [(3, CLIP + 2)] * 2):
        found = grids(mean[image, :, list(positions)].mean(-1, keepdim=True), (6, 4))
        torch.testing.assert_close(recorder.maps()[0, image], found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("setting", [FLUX, SD3], ids=["flux", "sd3"])
def test_a_missing_word_is_refused_before_the_denoiser_runs(setting):
    make, options, *_ = setting
    pipe, ran = make(), []
    pipe.transformer.register_forward_pre_hook(lambda *_: ran.append(1))
    with apply(pipe, scale=None, record=MapRecorder("f")), pytest.raises(ValueError, match="'f' is not in the prompt"):
        generate(pipe, "ab c", options)
    assert not ran


def test_a_truncated_prompt():
    """Words that do not fit are missing: T5 has 4 positions, and the last one is the end token."""
    recorder = recorded(FLUX, "a b c d e", MapRecorder(), max_sequence_length=4)
    assert recorder.tokens == ("a", "b", "c")
    with pytest.raises(ValueError, match="'d' is not in the prompt"):
        recorded(FLUX, "a b c d e", MapRecorder("d"), max_sequence_length=4)


def test_words_at_unknown_positions_are_refused():
    """In other pipelines, templates, registers and cleaning move the words; positions still work."""
    for name in ("qwen", "pixart", "auraflow", "cogview4", "if"):
        pipe = PIPELINES[name].make()
        pipe.register_modules(tokenizer=make_tokenizer())
        with pytest.raises(ValueError, match="positions of its words are not known: give positions"):
            apply(pipe, scale=None, record=MapRecorder("c"))
    pipe, recorder = PIPELINES["auraflow"].make(), MapRecorder((0, 9))
    with apply(pipe, scale=None, record=recorder):
        PIPELINES["auraflow"].run(pipe)
    assert recorder.maps().shape[2] == 2 and recorder.tokens == ("0", "9")


def test_no_map_if_images_begin_at_different_positions():
    pipe, recorder = PIPELINES["lumina2"].make(), MapRecorder((0,))
    with apply(pipe, scale=None, record=recorder), pytest.raises(ValueError, match="differs within the"):
        PIPELINES["lumina2"].run(pipe)


def test_joined_text():
    parts = (TextPart(make_tokenizer(), CLIP), TextPart(None, 2), TextPart(t5_tokenizer(), None))
    text = JoinedText(("ab", "", "b ab"), parts, CLIP + 2 + 6)
    assert len(text) == CLIP + 8 and text.real == (1, 2, 9, 10, 11)
    assert [(word.label, word.positions) for word in text.words] == [("ab", (1, 2)), ("b", (9,)), ("ab", (10, 11))]
    assert text.find("ab").positions == (1, 2, 10, 11) and text.find("b").positions == (9,)
    assert text.token(CLIP).label == str(CLIP) and text.token(10).label == "a"
    with pytest.raises(ValueError, match="9 positions of text, too few for the 9 of its first parts"):
        JoinedText("ab", parts, CLIP + 2)


def test_self_attention_has_no_words():
    for info in (CallInfo("a", "self", 16, 16, 2, 8, text_tokens=16), CallInfo("a", "joint", 16, 16, 2, 8)):
        recorder = MapRecorder(1)
        recorder.observe(info, (8, 8))
        assert recorder.wants(info, (8, 8)) is None
