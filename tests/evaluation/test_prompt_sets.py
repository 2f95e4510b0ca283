"""Prompt sets: every format by its content and by name, and refusals that name the line."""

from __future__ import annotations

import json

import pytest

from entropy_attn.evaluation import prompt_sets
from entropy_attn.evaluation.prompt_sets import Item, read_objects, read_prompts, split_objects

TIFA = json.dumps(
    [
        {"id": "coco_7", "caption": "A cup on a table.", "coco_val_id": "12"},
        {"id": "drawbench_52", "caption": "Two dogs."},
    ],
    indent=1,
)
PARTI = 'Prompt\tCategory\tChallenge\tNote\na "small" fox\tAnimals\tBasic\t\ntwo owls, and a moon\tWorld\tBasic\tx\n'
GENEVAL = "\n".join(
    json.dumps(line)
    for line in (
        {"tag": "two_object", "include": [{"class": "cake", "count": 1}, {"class": "orange", "count": 1}],
         "prompt": "a photo of a cake and an orange"},
        {"tag": "colors", "include": [{"class": "bus", "count": 1, "color": "white"}],
         "prompt": "a photo of a white bus"},
    )
)  # fmt: skip
LINES = "a red circle\n\n  two blue squares \r\n"


@pytest.fixture
def write(tmp_path):
    def written(content: str, name: str = "set.txt"):
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return path

    return written


@pytest.mark.parametrize(
    ("content", "kind", "items"),
    [
        (TIFA, "tifa", [Item("coco_7", "A cup on a table.", "coco"), Item("drawbench_52", "Two dogs.", "drawbench")]),
        (PARTI, "parti", [Item("0", 'a "small" fox', "Animals"), Item("1", "two owls, and a moon", "World")]),
        (
            GENEVAL,
            "geneval",
            [
                Item("0", "a photo of a cake and an orange", "two_object", ("a cake", "an orange")),
                Item("1", "a photo of a white bus", "colors", ("a white bus",)),
            ],
        ),
        (LINES, "lines", [Item("0", "a red circle"), Item("1", "two blue squares")]),
    ],
    ids=prompt_sets.FORMATS,
)
def test_formats_are_recognized_by_their_content(write, content, kind, items):
    path = write("\ufeff" + content, "my set.data")
    for found in (read_prompts(path), read_prompts(path, kind)):
        assert (found.name, found.format, list(found.items)) == ("my set", kind, items)
    assert bool(found.objects_from) == (kind == "geneval")
    assert len(found.first(1)) == 1 and len(found.first(None)) == 2


def test_a_format_that_is_named_is_not_guessed(write):
    assert read_prompts(write(TIFA), "lines").texts[0] == "["
    with pytest.raises(ValueError, match=r"line 1: expected tab-separated columns with 'Prompt', got \['a red circle'"):
        read_prompts(write(LINES), "parti")
    with pytest.raises(ValueError, match=r"format: expected 'tifa', .* or 'lines', got 'csv'"):
        read_prompts(write(LINES), "csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected prompts, got none"),
        ("[]", "expected prompts, got none"),
        ('[{"id": "a_1", "caption": "x"},\n {"id": 3}', r"line 2: expected JSON, got .* at column"),
        ('[{"id": "a_1", "caption": "x"}, {"id": "a_2"}]', r"entry 1: expected an object with id and caption"),
        ('[{"id": "a", "caption": "x"}, {"id": "a", "caption": "y"}]', r"expected different ids, got 'a' 2 times"),
        ("Prompt\tCategory\nx\ty\nz\n", "line 3: expected 2 columns, got 1"),
        ("Prompt\tCategory\n \ty\n", "line 2: expected a prompt, got ' '"),
        ('{"prompt": "x"}\n{"prompt": 3}\n', "line 2: expected a JSON object with prompt"),
        ('{"prompt": "x"}\n\n{"prompt": "y"\n', "line 3: expected JSON"),
        ('{"prompt": "x", "include": [{"count": 1}]}', "line 1: include: expected objects with class"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_line(write, content, message):
    with pytest.raises(ValueError, match=message):
        read_prompts(write(content))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match="expected a file that can be read, got No such file"):
        read_prompts(tmp_path / "no.txt")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff")
    with pytest.raises(ValueError, match="expected text in UTF-8, got other bytes at position 0"):
        read_prompts(tmp_path / "image.png")


def test_objects_from_a_file_by_prompt_or_id(write):
    prompts = read_prompts(write(LINES))
    objects = write(json.dumps({"a red circle": ["a red circle"], "1": ["a square", "a square"]}), "objects.json")
    found = read_objects(objects, prompts)
    assert [item.objects for item in found.items] == [("a red circle",), ("a square", "a square")]
    assert found.objects_from == "objects.json" and not prompts.objects_from


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (["x"], "expected a JSON object"),
        ({"0": ["x"]}, "expected an entry for the prompt 'two blue squares' \\(id '1'\\), got none"),
        ({"0": ["x"], "1": ["y"], "2": ["z"]}, "expected a prompt or id for each entry, got '2'"),
        ({"0": [], "1": ["y"]}, r"'0': expected a list of phrases, got \[\]"),
        ({"0": "x", "1": ["y"]}, "'0': expected a list of phrases, got 'x'"),
    ],
)
def test_objects_need_every_prompt(write, objects, message):
    prompts = read_prompts(write(LINES))
    with pytest.raises(ValueError, match=message):
        read_objects(write(json.dumps(objects), "objects.json"), prompts)


def test_prompts_are_split_only_where_that_is_asked_for(write):
    prompts = read_prompts(write("a cat and a red bow\na lion with a crown\n"))
    assert not any(item.objects for item in prompts.items)
    found = split_objects(prompts, ("and", "with"))
    assert [item.objects for item in found.items] == [("a cat", "a red bow"), ("a lion", "a crown")]
    with pytest.raises(ValueError, match="objects: expected one of and in every prompt, got 'a lion with a crown'"):
        split_objects(prompts, ("and",))
