"""Autotuning: opt-in, measured once, remembered on disk, and never at the cost of the result."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from triton.runtime.errors import OutOfResources

import entropy_attn as ea
from entropy_attn.kernels.common.call import AttentionCall
from entropy_attn.kernels.common.support import call_target
from entropy_attn.kernels.forward import autotune, launch
from entropy_attn.kernels.forward.configs import forward_candidates
from tests.kernels.calls import DEVICE
from tests.support.oracle import assert_matches_oracle, make_qkv


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(autotune, "_remembered", {})
    return tmp_path / "entropy-attn" / "forward.json"


def make_call(seqlen_q: int = 40, head_dim: int = 16, **options) -> launch.ForwardCall:
    q, k, v = make_qkv(1, 2, seqlen_q, 50, head_dim, dtype=torch.float16, device=DEVICE)  # float32 has one candidate
    return launch.ForwardCall(AttentionCall(q, k, v, **options), torch.empty_like(q), None, None, call_target(q))


def timer_preferring(index: int):
    """Says that the candidate tried at this place was the fastest."""
    times = itertools.count()
    return lambda run: (run(), abs(next(times) - index))[1]


def test_the_fastest_candidate_is_taken_and_stored(own_cache):
    call = make_call()
    candidates = forward_candidates(**call.options())
    assert autotune.tuned_config(call, timer_preferring(1)) == candidates[1]
    assert len(json.loads(own_cache.read_text())) == 1


def test_what_is_stored_is_not_measured_again(monkeypatch):
    best = autotune.tuned_config(make_call(), timer_preferring(1))
    unmeasured = lambda run: pytest.fail("measured again")  # noqa: E731
    assert autotune.tuned_config(make_call(), unmeasured) == best
    monkeypatch.setattr(autotune, "_remembered", {})  # another process
    assert autotune.tuned_config(make_call(), unmeasured) == best
    assert autotune.tuned_config(make_call(seqlen_q=60), unmeasured) == best  # the same bucket of lengths


@pytest.mark.parametrize("other", [{"seqlen_q": 65}, {"head_dim": 24}, {"is_causal": True}], ids=str)
def test_another_kind_of_call_is_measured_anew(own_cache, other):
    autotune.tuned_config(make_call(), timer_preferring(1))
    autotune.tuned_config(make_call(**other), timer_preferring(0))
    assert len(json.loads(own_cache.read_text())) == 2


def test_a_broken_file_is_said_and_written_anew(own_cache):
    own_cache.parent.mkdir(parents=True)
    own_cache.write_text("{half")
    with pytest.warns(UserWarning, match="is not readable and will be written anew"):
        autotune.tuned_config(make_call(), timer_preferring(0))
    assert len(json.loads(own_cache.read_text())) == 1


def test_a_folder_that_takes_no_file_costs_only_the_memory(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="kept for this process only"):
        best = autotune.tuned_config(make_call(), timer_preferring(1))
    assert autotune.tuned_config(make_call(), lambda run: pytest.fail("measured again")) == best


def test_a_candidate_that_fails_is_left_out_and_all_failing_is_an_error():
    def failing_first(run, times=itertools.count()):  # noqa: B008
        if next(times) == 0:
            raise OutOfResources(300_000, 232_448, "shared memory")
        return 1.0

    call = make_call()
    assert autotune.tuned_config(call, failing_first) == forward_candidates(**call.options())[1]

    def failing(run):
        raise OutOfResources(300_000, 232_448, "shared memory")

    with pytest.raises(RuntimeError, match=r"no candidate ran: .*shared memory"):
        autotune.tuned_config(make_call(head_dim=24), failing)


def test_an_error_that_is_not_of_a_candidate_s_size_is_raised(own_cache):
    def lost(run):
        raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match=r"^Triton Error .*illegal memory access"):
        autotune.tuned_config(make_call(head_dim=24), lost)
    assert not own_cache.exists()


def test_the_tuned_call_is_right(own_cache):
    q, k, v = make_qkv(1, 2, 40, 50, 16, dtype=torch.float16, device=DEVICE)
    actual = launch.attention_forward(AttentionCall(q, k, v, return_lse=True, return_entropy=True), autotune=True)
    assert_matches_oracle(actual, q, k, v)
    assert own_cache.exists()
    with pytest.raises(ValueError, match="exclude each other"):
        config = forward_candidates("sm_90", 64, 64, q.dtype)[0]
        launch.attention_forward(AttentionCall(q, k, v), autotune=True, config=config)


def test_the_environment_variable_opts_in(own_cache, monkeypatch):
    q, k, v = make_qkv(1, 2, 40, 50, 16, dtype=torch.float16, device=DEVICE)
    ea.attention(q, k, v, impl="triton")
    assert not own_cache.exists()
    monkeypatch.setenv("ENTROPY_ATTN_AUTOTUNE", "1")
    assert_matches_oracle((ea.attention(q, k, v, impl="triton").out, None, None), q, k, v)
    assert own_cache.exists()
