"""The splits of the captions of shapes."""

from __future__ import annotations

import random

import pytest

from entropy_attn.evaluation import shapes_captions
from entropy_attn.evaluation.shapes_captions import SPLITS, shapes_prompts, shapes_requests
from entropy_attn.shapes.scenes import KINDS, Request, held_out, random_request


def captions(total, split, seed=77):
    return [request.caption() for request in shapes_requests(total, split, seed)]


def test_what_a_setting_is_chosen_on_is_not_what_it_is_reported_on():
    report, choose = captions(300, "report"), captions(60, "choose", seed=78)
    assert len({*report, *choose}) == 360 and captions(20, "report") == report[:20]


def test_a_quarter_of_the_captions_is_for_choosing():
    seen = shapes_requests(400)
    chooses = [request for request in seen if shapes_captions._in_split(request, "choose")]
    assert 0.18 < len(chooses) / 400 < 0.32
    assert all(shapes_captions._in_split(request, "report") != (request in chooses) for request in seen)


@pytest.mark.parametrize("split", ["seen", "held-out", "choose", "report"])
def test_only_one_split_has_what_is_held_out(split):
    requests = shapes_requests(40, split)
    assert {held_out().touches(request) for request in requests} == {split == "held-out"}


def test_an_unknown_split():
    with pytest.raises(ValueError, match="split: expected 'seen', 'held-out', 'choose' or 'report', got 'test'"):
        shapes_requests(1, "test")


def test_every_request_that_can_be_drawn_is_counted():
    rng, kinds = random.Random(0), KINDS[:3]
    every = list(shapes_captions._every_request(kinds))
    assert len(set(every)) == len(every)
    assert set(every) == {random_request(rng, kinds) for _ in range(3000)}


@pytest.mark.parametrize("split", SPLITS)
def test_more_captions_than_there_are(split, monkeypatch):
    monkeypatch.setattr(shapes_captions, "random_request", lambda *_: pytest.fail("it drew one"))
    most = len(shapes_captions._requests_of(split))
    with pytest.raises(
        ValueError, match=f"^total: expected at most {most}, .* in the split '{split}', got {most + 1}$"
    ):
        shapes_requests(most + 1, split)
    several = most - 3 * sum(held_out().touches(Request(((kind, 1),))) == (split == "held-out") for kind in KINDS)
    if split in ("seen", "held-out"):
        with pytest.raises(ValueError, match=f"^total: expected at most {several}, the number of such requests in"):
            shapes_prompts(several + 1, split)
    for bad, error in ((-1, ValueError), (2.5, TypeError)):
        with pytest.raises(error, match=f"total: expected an integer >= 0, got {bad}"):
            shapes_requests(bad, split)


def test_all_captions_that_there_are(monkeypatch):
    few = [request for request in shapes_captions._every_request(KINDS[:3]) if not held_out().touches(request)]
    monkeypatch.setattr(shapes_captions, "random_request", lambda rng: random_request(rng, KINDS[:3]))
    monkeypatch.setattr(shapes_captions, "_requests_of", lambda split: few)
    assert len(few) > 5 and set(shapes_requests(len(few))) == set(few)
