"""Autotuning is opt-in, measures once, stores its choice on disk, and never changes the result."""

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
from entropy_attn.kernels.forward.configs import ForwardConfig, forward_candidates
from tests.kernels.calls import DEVICE
from tests.support.oracle import assert_matches_oracle, make_qkv


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(autotune, "_remembered", {})
    return tmp_path / "entropy-attn" / "forward.json"


def make_call(seqlen_q: int = 40, head_dim: int = 16, **options) -> launch.ForwardCall:
    q, k, v = make_qkv(1, 2, seqlen_q, 50, head_dim, dtype=torch.float16, device=DEVICE)  # float32 has one candidate
    return launch.ForwardCall(AttentionCall(q, k, v, **options), torch.empty_like(q), None, None, call_target(q))


def timer_preferring(index: int):
    """A timer for which the candidate with this index is the fastest."""
    times = itertools.count()
    return lambda run: (run(), abs(next(times) - index))[1]


def test_the_fastest_candidate_is_taken_and_stored(cache_folder):
    call = make_call()
    candidates = forward_candidates(**call.options())
    assert autotune.tuned_config(call, timer_preferring(1)) == candidates[1]
    assert len(json.loads(cache_folder.read_text())) == 1


def test_a_stored_choice_is_not_measured_again(monkeypatch):
    best = autotune.tuned_config(make_call(), timer_preferring(1))
    unmeasured = lambda run: pytest.fail("measured again")  # noqa: E731
    assert autotune.tuned_config(make_call(), unmeasured) == best
    monkeypatch.setattr(autotune, "_remembered", {})  # another process
    assert autotune.tuned_config(make_call(), unmeasured) == best
    assert autotune.tuned_config(make_call(seqlen_q=60), unmeasured) == best  # the same bucket of lengths


@pytest.mark.parametrize("other", [{"seqlen_q": 65}, {"head_dim": 24}, {"is_causal": True}], ids=str)
def test_another_kind_of_call_is_measured(cache_folder, other):
    autotune.tuned_config(make_call(), timer_preferring(1))
    autotune.tuned_config(make_call(**other), timer_preferring(0))
    assert len(json.loads(cache_folder.read_text())) == 2


def test_a_broken_file_gives_a_warning_and_is_replaced(cache_folder):
    cache_folder.parent.mkdir(parents=True)
    cache_folder.write_text("{half")
    with pytest.warns(UserWarning, match="is not readable and will be written anew"):
        autotune.tuned_config(make_call(), timer_preferring(0))
    assert len(json.loads(cache_folder.read_text())) == 1


def test_without_a_writable_folder_the_choice_is_kept_in_memory(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="kept for this process only"):
        best = autotune.tuned_config(make_call(), timer_preferring(1))
    assert autotune.tuned_config(make_call(), lambda run: pytest.fail("measured again")) == best


def test_a_candidate_that_fails_is_skipped_and_it_is_an_error_if_all_fail():
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


def test_a_candidate_that_cannot_serve_a_call_is_passed_over(monkeypatch):
    """Rows of the query that are not aligned, as descriptors need them; the key says so, so a choice is not shared."""
    plain = ForwardConfig(32, 32, 4, 1)
    specialized = ForwardConfig(32, 32, 4, 1, descriptors=True, schedule="specialized")
    monkeypatch.setattr(autotune, "forward_candidates", lambda **options: [specialized, plain])
    aligned, skewed = make_call(), make_call()
    query = skewed.call.query
    skewed.call.query = query.new_empty(*query.shape[:3], 17)[..., :16].copy_(query)
    assert autotune.tuned_config(skewed, timer_preferring(0)) == plain
    assert autotune.tuning_key(aligned) != autotune.tuning_key(skewed)


def test_an_error_unrelated_to_the_size_of_a_candidate_is_raised(cache_folder):
    def lost(run):
        raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match=r"^Triton Error .*illegal memory access"):
        autotune.tuned_config(make_call(head_dim=24), lost)
    assert not cache_folder.exists()


def test_the_tuned_call_is_right(cache_folder):
    q, k, v = make_qkv(1, 2, 40, 50, 16, dtype=torch.float16, device=DEVICE)
    actual = launch.attention_forward(AttentionCall(q, k, v, return_lse=True, return_entropy=True), autotune=True)
    assert_matches_oracle(actual, q, k, v)
    assert cache_folder.exists()
    with pytest.raises(ValueError, match="exclude each other"):
        config = forward_candidates("sm_90", 64, 64, q.dtype)[0]
        launch.attention_forward(AttentionCall(q, k, v), autotune=True, config=config)


def test_the_environment_variable_opts_in(cache_folder, monkeypatch):
    q, k, v = make_qkv(1, 2, 40, 50, 16, dtype=torch.float16, device=DEVICE)
    ea.attention(q, k, v, impl="triton")
    assert not cache_folder.exists()
    monkeypatch.setenv("ENTROPY_ATTN_AUTOTUNE", "1")
    assert_matches_oracle((ea.attention(q, k, v, impl="triton").out, None, None), q, k, v)
    assert cache_folder.exists()
