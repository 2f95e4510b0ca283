"""Questions as TIFA asks them: the file, the networks' answers, and the mapping to choices, by hand."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from entropy_attn.evaluation.metrics.questions import VQA, ChoiceEncoder, Question, judged, read_questions
from entropy_attn.evaluation.prompt_sets import Item, PromptSet

PROMPTS = PromptSet("set", "tifa", (Item("coco_1", "a red circle"), Item("coco_2", "two circles")))
ENTRY = {
    "id": "coco_1",
    "question": "what color?",
    "choices": ["red", "blue"],
    "answer": "red",
    "element_type": "color",
}


@pytest.fixture
def write(tmp_path):
    def written(entries):
        path = tmp_path / "questions.json"
        path.write_text(json.dumps(entries))
        return path

    return written


def test_questions_by_prompt(write):
    other = ENTRY | {"id": "paintskill_9"}
    again = ENTRY | {"choices": ["red", "green"]}
    second = {"id": "coco_2", "question": "how many?", "choices": ["two", "one"], "answer": "two"}
    found = read_questions(write([ENTRY, other, again, second]), PROMPTS)
    assert found == {
        "coco_1": (Question("what color?", ("red", "green"), "red", "color"),),
        "coco_2": (Question("how many?", ("two", "one"), "two", ""),),
    }


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"id": "x"}, "expected a JSON list of questions, got dict"),
        ([ENTRY, {"id": "coco_1"}], "entry 1: expected an object with id, question, answer and choices"),
        ([ENTRY | {"choices": "red"}], "entry 0: choices: expected a list of texts, got 'red'"),
        ([ENTRY | {"answer": "green"}], r"entry 0: answer: expected one of \['red', 'blue'\], got 'green'"),
        ([ENTRY | {"id": "x_1"}], "about the prompts of set, whose ids are like 'coco_1', got ids like 'x_1'"),
        ([], "whose ids are like 'coco_1', got ids like None"),
    ],
)
def test_a_wrong_file_is_refused(write, entries, message):
    with pytest.raises(ValueError, match=message):
        read_questions(write(entries), PROMPTS)


def test_vilt_answers_with_its_likeliest_label(networks, images):
    folder = networks["vilt"]
    question = "what color is the circle?"
    model = transformers.ViltForQuestionAnswering.from_pretrained(folder).eval()
    inputs = dict(transformers.AutoTokenizer.from_pretrained(folder)(question, return_tensors="pt"))
    inputs |= dict(transformers.AutoImageProcessor.from_pretrained(folder)(images=images[:1], return_tensors="pt"))
    with torch.no_grad():
        label = int(model(**inputs).logits[0].argmax())
    assert VQA(folder).answer(images[0], question) == model.config.id2label[label]
    VQA(folder).answer(images[0], "what " * 100)  # cut at the network's length


def test_blip_answers_in_words(networks, images):
    folder = networks["blip"]
    question = "is there a circle?"
    model = transformers.BlipForQuestionAnswering.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(images=images[:1], return_tensors="pt")
    tokens = tokenizer(question, return_tensors="pt")
    ids = model.generate(
        input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels["pixel_values"],
        max_length=50,
    )  # fmt: skip
    assert VQA(folder).answer(images[0], question) == tokenizer.decode(ids[0], skip_special_tokens=True).strip()


def test_other_networks_are_refused(networks):
    with pytest.raises(ValueError, match="vqa: expected a blip or vilt network, got clip in "):
        VQA(networks["clip"])


def test_answers_go_to_the_closest_choice_as_in_tifa(networks):
    """The mean of the last hidden states over the tokens, without padding, as unit vectors."""
    folder, texts = networks["encoder"], ["dark blue", "red", "is the circle blue or red ?"]
    model = transformers.BertModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    alone = []
    for text in texts:  # one by one there is no padding
        with torch.no_grad():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        alone.append(mean / mean.norm())
    encoder = ChoiceEncoder(folder)
    torch.testing.assert_close(encoder.embed(texts), torch.stack(alone), atol=1e-5, rtol=0)
    nearer = max(texts[1:], key=lambda text: float(alone[0] @ alone[texts.index(text)]))
    assert encoder.closest(texts[0], texts[1:]) == nearer


def test_judgement_of_an_answer(networks):
    question = Question("what color?", ("red", "blue"), "blue")
    assert judged("blue", question, None).right
    assert (judged("navy", question, None).choice, judged("navy", question, None).right) == ("", False)

    class Nearest:
        def closest(self, answer, choices):
            assert (answer, choices) == ("navy", ("red", "blue"))
            return "blue"

    assert judged("navy", question, Nearest()).right
    assert not judged("red", question, Nearest()).right  # a choice is not mapped
