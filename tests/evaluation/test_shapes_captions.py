"""The splits of the captions of shapes."""

from __future__ import annotations

import pytest

from entropy_attn.evaluation import shapes_captions
from entropy_attn.evaluation.shapes_captions import shapes_requests
from entropy_attn.shapes.scenes import held_out


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
