"""Questions as TIFA asks them: the file, the networks' answers, and the mapping to choices, by hand."""

from __future__ import annotations

import json

import pytest

from entropy_attn.evaluation.metrics.questions import Question, judged, read_questions
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
