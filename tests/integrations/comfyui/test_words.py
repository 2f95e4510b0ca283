"""Word maps: the positions of ComfyUI's text, the conditional rows, and the prompt that the sampler was given."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from tests.integrations.comfyui import stub
from tests.integrations.comfyui.loading import part

words = part("words")

VOCABULARY = [
    "<start>",
    "<end>",
    "!",
    *(f"{word}</w>" for word in "a red circle and blue square".split()),
    "squ",
    "are</w>",
]
BLOCK = 8  # positions of a block, of which two are marks


class Words:
    """As the CLIPTokenizer of transformers in SDTokenizer.tokenizer: lower case, words in two pieces where needed."""

    def __call__(self, text, add_special_tokens=True):
        pieces = []
        for word in text.split():
            pieces += ["squ", "are</w>"] if word == "square" else [f"{word}</w>"]
        ids = [VOCABULARY.index(piece) for piece in pieces]
        return {"input_ids": [0, *ids, 1] if add_special_tokens else ids}

    def convert_ids_to_tokens(self, ids):
        return [VOCABULARY[token] for token in ids]

    def decode(self, ids, clean_up_tokenization_spaces=False):
        return "".join(VOCABULARY[token] for token in ids).replace("</w>", " ")


class Clip:
    """As comfy.sd.CLIP: blocks of positions with marks, "(word:1.2)" is a weight, "embedding" a textual inversion."""

    def __init__(self, names=("l",), pad=1):
        self.names, self.pad, self.words = names, pad, Words()
        self.tokenizer = SimpleNamespace(**{f"clip_{name}": SimpleNamespace(tokenizer=self.words) for name in names})

    def tokenize(self, text, return_word_ids=False):
        text = text.replace("(", "").replace(":1.2)", "")
        found = []
        for word in text.split():
            ids = [torch.zeros(12)] if word == "embedding" else self.words(word, add_special_tokens=False)["input_ids"]
            found += [(token, 1.0, 1) for token in ids]
        blocks = []
        for start in range(0, max(len(found), 1), BLOCK - 2):
            block = [(0, 1.0, 0), *found[start : start + BLOCK - 2], (1, 1.0, 0)]
            blocks.append(block + [(self.pad, 1.0, 0)] * (BLOCK - len(block)))
        if not return_word_ids:
            blocks = [[entry[:2] for entry in block] for block in blocks]
        return dict.fromkeys(self.names, blocks)

    def encode_from_tokens_scheduled(self, tokens):
        seed = hash(str([entry for block in tokens[self.names[0]] for entry in block])) % 2**31
        return [[stub.text(seed, BLOCK * len(tokens[self.names[0]])), {"pooled_output": None}]]


PROMPT = "a (red:1.2) circle and a square"  # 7 tokens, two blocks: "square" is in both
SHORT = "a red circle"


def encoded(text, clip=None):
    clip = clip or Clip()
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))[0][0]


def expected_maps(positions, size, sigmas, branch=1, parts=2, **kwargs):
    """Mean over steps, heads and layers of the first size, from an override of the test's own."""
    model, found, grid = stub.model(), [], math.prod(size)

    def override(func, q, k, v, heads, **kwargs):
        if k.shape[1] not in (grid, math.prod(math.ceil(side / 2) for side in size)) and q.shape[1] == grid:
            queries, keys = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k))
            p = (queries @ keys.mT / math.sqrt(queries.shape[-1])).softmax(-1)
            found.append(torch.stack([p[..., chosen].mean(-1).mean(1).chunk(parts)[branch] for chosen in positions]))
        return func(q, k, v, heads, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = override
    stub.run(model, size, sigmas, **kwargs)
    return torch.stack(found).mean(0).unflatten(-1, size)  # words, images, rows, columns


def test_maps_are_those_of_the_conditional_rows_at_the_words_positions():
    model, positive, maps = words.mapped(stub.model(), Clip(), PROMPT, "red, circle and, square")
    assert torch.equal(positive[0][0], encoded(PROMPT))
    # the marks are at 0, 7, 8 and after the end; "square" is two tokens, the second of them in the second block
    texts = {"cond": positive[0][0], "uncond": encoded(" ".join(["a"] * 9))}
    stub.run(model, (5, 6), (4.0, 1.0), images=2, **texts)
    recorded = maps.recorder
    assert recorded.tokens == ("red", "circle and", "square")
    assert recorded.positions == ((2,), (3, 4), (6, 9))
    assert recorded.map_size == (5, 6) and recorded.branch_names == ("cond",)
    wanted = expected_maps([[2], [3, 4], [6, 9]], (5, 6), (4.0, 1.0), images=2, **texts)
    torch.testing.assert_close(recorded.maps()[0], wanted.transpose(0, 1).float(), rtol=1e-5, atol=1e-6)


def test_a_prompt_shorter_than_the_negative_one_is_repeated_as_comfyui_repeats_it():
    model, positive, maps = words.mapped(stub.model(), Clip(), SHORT, "red")
    texts = {"cond": positive[0][0], "uncond": encoded(PROMPT)}
    stub.run(model, (5, 6), (4.0, 1.0), **texts)
    assert maps.recorder.positions == ((2, 10),)
    wanted = expected_maps([[2, 10]], (5, 6), (4.0, 1.0), **texts)
    torch.testing.assert_close(maps.recorder.maps()[0], wanted.transpose(0, 1).float(), rtol=1e-5, atol=1e-6)
    stub.run(model, (5, 6), (4.0,), cond=positive[0][0], uncond=encoded("blue"))  # and again without
    assert maps.recorder.positions in (((2,),), ((2, 10),))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_branches_in_passes_of_their_own(order):
    model, positive, maps = words.mapped(stub.model(), Clip(), SHORT, "red")
    texts = {"cond": positive[0][0], "uncond": encoded("blue square")}
    stub.run(model, (5, 6), (4.0, 1.0), split=True, order=order, **texts)
    together, _, other = words.mapped(stub.model(), Clip(), SHORT, "red")
    stub.run(together, (5, 6), (4.0, 1.0), **texts)
    torch.testing.assert_close(maps.recorder.maps(), other.recorder.maps())


def test_images_are_the_same_bit_for_bit_and_the_latest_sampling_is_held():
    model, positive, maps = words.mapped(stub.model(), Clip(), SHORT, "")
    assert torch.equal(stub.run(model, cond=positive[0][0]), stub.run(stub.model(), cond=positive[0][0]))
    first = maps.recorder.maps()
    stub.run(model, (6, 4), cond=positive[0][0])
    assert maps.recorder.maps().shape[-2:] == (6, 4) and first.shape[-2:] == (8, 8)
    assert maps.recorder.tokens == ("a", "red", "circle")


def test_the_text_of_sdxl_and_padding_that_is_a_word():
    tokens = words.PromptTokens(Clip(("l", "g")))
    read = tokens("a embedding circle", padding="max_length", max_length=BLOCK)
    assert read["input_ids"] == [0, 3, words.NO_TOKEN, 5, 1, 1, 1, 1]
    assert read["attention_mask"] == [0, 1, 0, 1, 0, 0, 0, 0]
    padded = words.PromptTokens(Clip(("h",), pad=2))("a", padding="max_length", max_length=BLOCK)
    assert padded["input_ids"][3] == 2 and padded["attention_mask"] == [0, 1] + [0] * 6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": SHORT, "words": "blue"}, "tokens: 'blue' is not in the prompt"),
        ({"text": "", "words": ""}, "text: expected a prompt with words, got ''"),
        ({"text": SHORT, "words": "red, red"}, "tokens: expected at least one, each once"),
        ({"text": SHORT, "words": "red", "clip": Clip(("l", "t5xxl"))}, "clip: expected the text encoder .* l, t5xxl"),
    ],
)
def test_what_cannot_be_recorded_is_refused_before_anything_is_changed(given, message):
    model = stub.model()
    with pytest.raises(ValueError, match=message):
        words.mapped(model, **{"clip": Clip(), **given})
    assert not model.wrappers and model.model_options == {"transformer_options": {}}


def test_another_prompt_at_the_sampler_is_refused():
    model, _, _ = words.mapped(stub.model(), Clip(), SHORT, "red")
    with pytest.raises(ValueError, match="expected the sampler's positive prompt to be 'a red circle'"):
        stub.run(model, cond=encoded("a blue circle"))


def test_several_conditional_prompts_are_refused():
    model, positive, _ = words.mapped(stub.model(), Clip(), SHORT, "red")
    with pytest.raises(ValueError, match=r"one conditional prompt in a pass, got the branches \('cond', 'cond 2'"):
        stub.run(model, cond=positive[0][0], order=(0, 0, 1))


def test_overlays_are_image_after_image_and_word_after_word():
    pytest.importorskip("PIL")
    model, positive, maps = words.mapped(stub.model(), Clip(), SHORT, "red, circle")
    stub.run(model, images=2, cond=positive[0][0])
    images = torch.rand(2, 32, 24, 3)
    drawn, text = words.overlays(maps, images, 0.0)
    assert drawn.shape == (4, 32, 24, 3)
    gray = images[1, ..., 0] * 0.299 + images[1, ..., 1] * 0.587 + images[1, ..., 2] * 0.114
    assert (drawn[3].mean(-1) - gray).abs().max() < 0.01
    full, _ = words.overlays(maps, images, 1.0)
    assert torch.equal(full[0], words.overlays(maps, 1 - images, 1.0)[0][0]) and not torch.equal(full[0], full[1])
    lines = text.splitlines()
    assert lines[0] == "image,word,highest,mean" and lines[2].startswith('0,"circle",')
    assert float(lines[2].split(",")[2]) == pytest.approx(float(maps.recorder.heat_map("circle").max()), rel=1e-5)


def test_overlays_of_other_images_are_refused():
    model, positive, maps = words.mapped(stub.model(), Clip(), SHORT, "red")
    with pytest.raises(ValueError, match="maps: expected a recorded sampling, got none"):
        words.overlays(maps, torch.rand(1, 8, 8, 3), 0.5)
    stub.run(model, cond=positive[0][0])
    with pytest.raises(ValueError, match="images: expected the 1 images that were sampled, got 3"):
        words.overlays(maps, torch.rand(3, 8, 8, 3), 0.5)


def test_a_model_with_joint_attention_is_refused():
    with pytest.raises(ValueError, match="model: word maps are for"):
        words.mapped(stub.model("flux"), Clip(), SHORT, "red")
