"""Maps of Lumina 2, where the image of each sample follows its text: words, and rows, against float64 softmaxes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.overrides import TorchFunctionMode

pytest.importorskip("diffusers")

from transformers import PreTrainedTokenizerFast

from entropy_attn.integrations.diffusers import apply
from entropy_attn.prompts import Text
from entropy_attn.recorders.entropy import EntropyRecorder
from entropy_attn.recorders.maps import MapRecorder
from entropy_attn.routing.calls import AttentionArguments, DenoiserCall, LayerCall
from entropy_attn.routing.recordings import Recordings
from entropy_attn.scale import CallInfo
from tests.support.shapes_transformer import shapes_transformer

__all__ = ["shapes_transformer"]

GRID = (6, 4)
PROMPTS = ["a red circle", "two blue squares and a red circle"]  # 4 and 8 tokens with the start token
LENGTHS = (4, 8)


@pytest.fixture
def pipe(shapes_transformer) -> Any:
    from diffusers import Lumina2Pipeline

    pipe = Lumina2Pipeline.from_pretrained(shapes_transformer, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Any, prompt: Any, **options: Any) -> Any:
    given = {"height": 48, "width": 32, "num_inference_steps": 2, "output_type": "latent", "guidance_scale": 4.0}
    return pipe(prompt, generator=torch.Generator().manual_seed(3), **{**given, **options}).images


class Probabilities(TorchFunctionMode):
    """For every joint call of the conditional pass: probabilities (batch, queries, keys), mean over heads, float64."""

    def __init__(self, longest: int):
        super().__init__()
        self.tokens, self.calls, self.entropies = GRID[0] * GRID[1] + longest, [], []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is F.scaled_dot_product_attention and args[0].shape[-2] == self.tokens:
            logits = args[0].double() @ args[1].double().mT * kwargs["scale"]
            if kwargs["attn_mask"] is not None:
                logits = logits.masked_fill(~kwargs["attn_mask"], -torch.inf)
            found = logits.softmax(-1)
            self.calls.append(found.mean(1))
            self.entropies.append(torch.special.entr(found).sum(-1))
        return func(*args, **(kwargs or {}))


def test_words_and_rows_of_a_batch_of_different_lengths(pipe):
    with Probabilities(LENGTHS[1]) as oracle:
        generate(pipe, PROMPTS)
    recorder, entropies = MapRecorder("red"), EntropyRecorder(per_query=True)
    with apply(pipe, scale=None, record=[recorder, entropies]):
        generate(pipe, PROMPTS)
    mean = torch.stack(oracle.calls).mean(0)
    assert len(oracle.calls) == 2 and recorder.branch_names == ("cond",) and recorder.map_size == GRID
    image = GRID[0] * GRID[1]
    for number, (start, red) in enumerate(zip(LENGTHS, (2, 6), strict=True)):
        expected = mean[number, start : start + image, red].unflatten(0, GRID).float()
        torch.testing.assert_close(recorder.maps()[0, number, 0], expected, rtol=1e-4, atol=1e-6)
        expected = torch.stack(oracle.entropies).mean((0, 2))[number, start : start + image].unflatten(0, GRID)
        found = entropies.spatial(kind="joint", branch="cond")["layers.0.attn"][number]
        torch.testing.assert_close(torch.as_tensor(found), expected.float(), rtol=1e-4, atol=1e-4)
    rows = entropies.to_dataframe()
    assert set(rows[rows["kind"] == "joint"]["seqlen_q"]) == {image}


def test_a_position_behind_the_text_of_a_sample_is_none_of_the_image(pipe):
    """Where the longer text has its sixth token, the shorter one's image has its third."""
    recorder = MapRecorder(6)
    with apply(pipe, scale=None, record=recorder):
        generate(pipe, PROMPTS)
    shorter, longer = recorder.maps()[0, :, 0]
    assert shorter.isnan().all() and longer.isfinite().all() and longer.any()


def test_an_image_of_a_batch_has_the_maps_that_it_has_alone(pipe):
    alone, among = MapRecorder(), MapRecorder("circle")
    with apply(pipe, scale=None, record=alone):
        generate(pipe, PROMPTS[0])
    assert alone.tokens == ("a", "red", "circle") and alone.positions == ((1,), (2,), (3,))
    generators = [torch.Generator().manual_seed(3) for _ in PROMPTS]
    with apply(pipe, scale=None, record=among):
        pipe(PROMPTS, height=48, width=32, num_inference_steps=2, output_type="latent", generator=generators)
    torch.testing.assert_close(among.maps()[0, 0, 0], alone.maps()[0, 0, 2], rtol=1e-3, atol=1e-5)


def test_rows_of_the_image_can_have_a_scale_where_all_prompts_are_as_long(pipe):
    with apply(pipe, scale=lambda info: 0.1, rows="image"):
        generate(pipe, ["a red circle", "a blue square"])
    with apply(pipe, scale=lambda info: 0.1, rows="image"), pytest.raises(RuntimeError, match="begin at different"):
        generate(pipe, PROMPTS)


@pytest.mark.parametrize("mask", [torch.zeros(2, 1, 1, 9), torch.ones(2, 1, 9, 9, dtype=torch.bool)])
def test_a_mask_that_does_not_tell_where_images_begin_is_refused(mask):
    call = LayerCall("layers.0.attn", "joint", "first", ragged=True)
    info = CallInfo("layers.0.attn", "joint", 9, 9, 1, 8, text_tokens=3)
    recordings = Recordings(call, info, DenoiserCall(0, (2, 3)), True, ((EntropyRecorder(), "entropy"),))
    query = torch.zeros(2, 1, 9, 8)
    with pytest.raises(RuntimeError, match="does not tell where the image of each sample begins"):
        recordings.check(AttentionArguments(query, query, query, mask))
    recordings.check(AttentionArguments(query, query, query, torch.ones(2, 1, 1, 9, dtype=torch.bool)))


def plain_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each word and sign, those of a prefix as well."""
    words = ["<pad>", "<bos>", "<unk>", "a", "red", "circle", "square", "Prompt", "Start", "<", ">"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", pad_token="<pad>", unk_token="<unk>")


def test_words_of_the_system_prompt_are_none_of_the_prompt(pipe):
    pipe.register_modules(tokenizer=plain_tokenizer())
    pipe.system_prompt = "a red square"
    recorder = MapRecorder()
    with apply(pipe, scale=None, record=recorder):
        generate(pipe, "a red circle")
    assert recorder.tokens == ("a", "red", "circle") and recorder.positions == ((8,), (9,), (10,))
    with apply(pipe, scale=None, record=MapRecorder("square")), pytest.raises(ValueError, match="'square' is not in"):
        generate(pipe, "a red circle")


def test_words_after_another_system_prompt_are_not_guessed(pipe):
    with apply(pipe, scale=None, record=MapRecorder("red")), pytest.raises(ValueError, match="the prompt is not known"):
        generate(pipe, "a red circle", system_prompt="a red")
    recorder = MapRecorder(2)
    with apply(pipe, scale=None, record=[recorder, EntropyRecorder()]):
        generate(pipe, "a red circle", system_prompt="a red")
    assert recorder.tokens == ("2",)


def test_a_word_after_a_space_may_be_another_token():
    core = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "▁red": 2, "red": 3}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", pad_token="<unk>")
    text = Text("a red", tokenizer, 2)
    assert text.find("red").positions == (1,)
