"""Words of a prompt and their positions, for tokenizers with special tokens like those of CLIP and of BERT."""

from __future__ import annotations

import pytest

from entropy_attn.prompts import Text, TokenSelection, _word_starts
from tests.support.tiny_models import make_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def test_words_are_the_tokens_between_start_and_end(tokenizer):
    text = Text("ab c a", tokenizer)
    assert len(text) == 7 and text.real == (1, 2, 3, 4)
    assert [(word.label, word.positions) for word in text.words] == [("ab", (1, 2)), ("c", (3,)), ("a", (4,))]


@pytest.mark.parametrize(
    ("word", "positions"), [("ab", (1, 2)), ("AB", (1, 2)), ("c", (3, 4)), ("ab c", (1, 2, 3)), ("c c", (3, 4))]
)
def test_find(tokenizer, word: str, positions: tuple):
    assert Text("ab c c", tokenizer).find(word).positions == positions


class InBlocks:
    """A tokenizer whose texts are blocks of three tokens with marks of their own, as for a long prompt in ComfyUI."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __call__(self, text, add_special_tokens=True, **options):
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if add_special_tokens:
            start, end = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
            ids = [token for at in range(0, len(ids), 3) for token in (start, *ids[at : at + 3], end)]
        marks = {self._tokenizer.bos_token_id, self._tokenizer.eos_token_id}
        return {"input_ids": ids, "attention_mask": [int(token not in marks) for token in ids]}


@pytest.mark.parametrize(("word", "positions"), [("ab", (3, 6)), ("c ab", (2, 3, 6)), ("c", (1, 2, 7))])
def test_find_where_marks_stand_in_a_word(tokenizer, word: str, positions: tuple):
    text = Text("c c ab c", InBlocks(tokenizer))
    assert text.real == (1, 2, 3, 6, 7)
    assert text.find(word).positions == positions


@pytest.mark.parametrize("word", ["b", "a", "x", "abc", "c ab", "ab c c c"])
def test_the_error_of_a_missing_word_lists_the_words(tokenizer, word: str):
    with pytest.raises(ValueError, match=rf"'{word}' is not in the prompt 'ab c c', whose words are 'ab', 'c', 'c'"):
        Text("ab c c", tokenizer).find(word)


def test_words_that_do_not_fit_the_text_encoder_are_missing(tokenizer):
    text = Text("a b c d e f g", tokenizer)
    assert text.real == (1, 2, 3, 4, 5)
    with pytest.raises(ValueError, match="'f' is not in the prompt"):
        text.find("f")


def test_selections(tokenizer):
    text = Text("ab c", tokenizer)
    assert [choice.label for choice in TokenSelection().of_text(text)] == ["a", "b", "c"]
    labels = [choice.label for choice in TokenSelection(special=True).of_text(text)]
    assert labels == ["<|startoftext|>", "a", "b", "c", *["<|endoftext|>"] * 3]
    chosen = TokenSelection(("c", 0, 2)).of_text(text)
    assert [choice.positions for choice in chosen] == [(3,), (0,), (2,)]
    assert [choice.label for choice in TokenSelection((2, 6)).of_length(7)] == ["2", "6"]
    with pytest.raises(ValueError, match=r"position 7 is not in the text, which has positions 0 to 6"):
        TokenSelection(7).of_text(text)
    with pytest.raises(ValueError, match="has no words"):
        TokenSelection().of_text(Text("", tokenizer))


@pytest.mark.parametrize(
    ("pieces", "starts"),
    [
        (["a", "b</w>", "c</w>"], [True, False, True]),
        (["wal", "##rus", "b"], [True, False, True]),
        (["▁wal", "rus", "▁b"], [True, False, True]),
    ],
)
def test_word_starts(pieces: list, starts: list):
    assert _word_starts(pieces) == starts


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tokens": 1.5}, TypeError, r"tokens: .*got 1\.5"),
        ({"tokens": (True,)}, TypeError, r"tokens: .*got \(True,\)"),
        ({"tokens": -1}, ValueError, "expected positions from 0.*got -1"),
        ({"tokens": ()}, ValueError, "at least one"),
        ({"tokens": ("a", "a")}, ValueError, "each once"),
        ({"tokens": " "}, ValueError, "expected words, got the empty ' '"),
        ({"special": 1}, TypeError, "special"),
        ({"tokens": "a", "special": True}, ValueError, "special=True: .*got 'a'"),
    ],
)
def test_refusals(options: dict, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        TokenSelection(**options)
