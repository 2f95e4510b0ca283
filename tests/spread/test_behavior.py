"""Context parallelism on two processes: order, removal, refusals, and every model that can be spread."""

from __future__ import annotations

import pytest

from tests.spread import failing
from tests.spread.launch import results_of
from tests.support.processes import launch

pytestmark = pytest.mark.spread


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return results_of("run_behavior", 2, tmp_path_factory.getbasetemp())


def test_apply_and_enable_parallelism_in_either_order(found):
    numbers = found["apply, then enable_parallelism"]
    assert numbers["out"] <= 1e-14 and numbers["routed"] < -1e-3 and numbers["calls"] == 2
    assert found["enable_parallelism, then apply"]["out"] <= 1e-14


def test_remove_gives_diffusers_attention_back(found):
    assert found["apply, then enable_parallelism"]["removed"] <= 1e-14


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("a mask in a ring", "ulysses_degree instead of ring_degree"),
        ("a mask of rows", "mask of shape (2, 1, 36, 36)"),
        ("heads", "ulysses_degree=2 does not divide its 3 heads; give ulysses_anything=True"),
        ("a picked kernel", "set_attention_backend('native')"),
        ("a mix", "mix=SoftPAG: its tokens are spread over devices (context parallel)"),
        ("different noise", "hidden_states: expected the same on all devices"),
        ("different recorders", "record: expected the same on all devices"),
        ("different scales", "scale: expected the same on all devices"),
    ],
)
def test_refused_by_name_on_every_process(found, case, reason):
    assert reason in found[case]


def test_what_is_served_after_refusals(found):
    assert found["a mask in Ulysses"] == "nothing"
    assert found["same noise again"] == "nothing"


@pytest.mark.parametrize(
    "case",
    [f"{name}, ulysses" for name in ("flux", "flux2", "qwen", "wan", "wan-i2v", "ltx")]
    + [f"{name}, ring" for name in ("flux", "flux2", "wan", "wan-i2v")],
)
def test_every_model_with_a_plan(found, case):
    numbers = found[case]
    assert not numbers["different"]
    assert numbers["out"] <= 1e-13 and numbers["entropy"] <= 1e-14


@pytest.mark.parametrize("mode", ["ulysses", "ring"])
def test_a_pipeline_with_guidance(found, mode):
    numbers = found[f"pipeline, {mode}"]
    assert not numbers["different"]
    assert max(numbers["out"], numbers["entropy"], numbers["map"]) <= 2e-6  # float32


def test_compiled(found):
    assert found["compiled"]["out"] <= 1e-14


def test_an_exception_in_one_process_releases_the_others():
    (released, _), (failed, message) = launch(failing.work)  # torchrun would kill the other one before long
    assert message == "the policy of process 1 failed"
    assert released - failed < 60, "within the time that a process takes to end, not the limit of the process group"
