"""The probe: the entropies of the calls as they were made, without a change of the images."""

from __future__ import annotations

import csv
import io
import math

import pytest
import torch

from tests.integrations.comfyui import stub
from tests.integrations.comfyui.loading import part
from tests.integrations.comfyui.test_scale import scaled

probe = part("probe")


def entropy(q, k, scale):
    p = (q.double() @ k.double().mT * scale).softmax(-1)
    return -(p * p.clamp_min(1e-300).log()).sum(-1)


def expected_entropies(model, size, sigmas, ratio=lambda keys: 1.0):
    """{(step, branch, calls before it): entropy}, from an override of the test's own."""
    found, calls = [], []

    def override(func, q, k, v, heads, **kwargs):
        halves = [t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k)]
        values = entropy(*halves, ratio(k.shape[1]) / math.sqrt(halves[0].shape[-1]))
        found.append(values.mean(dim=(1, 2)))
        calls.append(k.shape[1])
        return func(q * ratio(k.shape[1]), k, v, heads, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = override
    stub.run(model, size, sigmas)
    return torch.stack(found), calls


@pytest.mark.parametrize("order", ["scale first", "probe first", "no scale"])
def test_it_measures_the_attention_that_was_computed(order):
    model = stub.model()
    if order == "scale first":
        model, found = probe.probed(scaled(model, train_tokens=30))
    elif order == "probe first":
        model, found = probe.probed(model)
        model = scaled(model, train_tokens=30)
    else:
        model, found = probe.probed(model)
    stub.run(model, (6, 9), (4.0, 2.0, 1.0))
    rows = found.rows()

    def ratio(keys):
        return 1.0 if keys == 7 or order == "no scale" else math.sqrt(math.log(keys) / math.log(30))

    wanted, keys = expected_entropies(stub.model(), (6, 9), (4.0, 2.0, 1.0), ratio)
    by_branch = torch.tensor([row["entropy"] for row in rows]).double().view(-1, 2)  # uncond, cond
    torch.testing.assert_close(by_branch, wanted, rtol=1e-5, atol=1e-6)
    assert [row["branch"] for row in rows[:2]] == ["uncond", "cond"]
    assert [row["seqlen_k"] for row in rows[::2]] == keys
    assert [row["kind"] for row in rows[::2][:2]] == ["self", "cross"]
    assert sorted({(row["step"], row["sigma"]) for row in rows}) == [(0, 4.0), (1, 2.0), (2, 1.0)]
    assert rows[0]["scale"] == pytest.approx(ratio(54) / math.sqrt(8))
    assert rows[0]["relative"] == pytest.approx(rows[0]["entropy"] / math.log(54))
    assert rows[0]["head_min"] <= rows[0]["entropy"] <= rows[0]["head_max"]


def test_images_are_the_same_bit_for_bit():
    model = stub.model()
    watched, _ = probe.probed(model)
    assert torch.equal(stub.run(watched), stub.run(model))


def test_it_holds_the_latest_sampling():
    model, found = probe.probed(stub.model())
    stub.run(model, sigmas=(4.0, 2.0))
    first = found.rows()
    stub.run(model, sigmas=(3.0,), seed=2)
    assert {row["sigma"] for row in found.rows()} == {3.0} and len(found.rows()) == len(first) // 2


def test_a_sampling_of_another_branch_of_the_graph_is_not_recorded():
    base = scaled(stub.model(), train_size=64)
    watched, found = probe.probed(base)
    stub.run(watched, sigmas=(4.0, 2.0))
    rows = found.rows()
    stub.run(base, sigmas=(9.0,))
    assert found.rows() == rows


def test_branches_in_passes_of_their_own_share_a_step():
    model, found = probe.probed(stub.model())
    stub.run(model, split=True, order=(0, 1))
    assert {(row["step"], row["branch"]) for row in found.rows()} == {
        (0, "cond"), (0, "uncond"), (1, "cond"), (1, "uncond")
    }  # fmt: skip


def test_several_conditional_parts_are_numbered():
    model, found = probe.probed(stub.model())
    stub.run(model, order=(0, 0, 1))
    assert {row["branch"] for row in found.rows()} == {"cond", "cond 2", "uncond"}


def test_joint_attention_is_that_of_the_image():
    model, found = probe.probed(stub.model("flux"))
    stub.run(model, (6, 5))
    rows = found.rows()
    assert {(row["layer"], row["kind"]) for row in rows} == {("joint.0", "joint"), ("joint.1", "joint")}
    assert {(row["seqlen_q"], row["seqlen_k"]) for row in rows} == {(9, 16)}


def test_the_table_and_the_figure():
    pytest.importorskip("matplotlib")
    pytest.importorskip("pandas")
    model, found = probe.probed(stub.model())
    stub.run(model)
    rows = list(csv.DictReader(io.StringIO(probe.table(found))))
    assert tuple(rows[0]) == probe.COLUMNS and len(rows) == len(found.rows()) == 24
    assert float(rows[3]["entropy"]) == found.rows()[3]["entropy"]
    drawn = probe.figure(found, "self")
    (shown,) = drawn.axes[0].images
    values = shown.get_array()
    assert values.shape == (3, 2)
    cond = [row for row in found.rows() if row["branch"] == "cond" and row["kind"] == "self"]
    assert values[1, 1] == pytest.approx(cond[4]["relative"])
    assert drawn.axes[0].get_yticklabels()[0].get_text() == "input_blocks.1.0.attn1"


def test_what_cannot_be_read_is_refused():
    model, found = probe.probed(stub.model("flux"))
    with pytest.raises(ValueError, match="probe: expected a recorded sampling, got none"):
        found.rows()
    stub.run(model)
    with pytest.raises(ValueError, match="kind: expected a kind of attention that was recorded, got 'cross'"):
        probe.figure(found, "cross")
    with pytest.raises(ValueError, match="kind: expected 'self' or 'cross', got 'all'"):
        probe.figure(found, "all")
