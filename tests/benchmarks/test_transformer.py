"""Training, export and evaluation of the second embedded model, at toy size: what a stop must not change."""

from __future__ import annotations

import os
import signal
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

from benchmarks.common import read_rows
from benchmarks.shapes.transformer import (
    autoencoder,
    evaluate,
    export,
    fast,
    images,
    latents,
    positions,
    train,
    widen,
)
from benchmarks.shapes.transformer.files import load_state, stop_requests, write_state
from benchmarks.shapes.transformer.model import AXES, text_encoder, tokenizer, transformer
from tests.support.shapes_transformer import WIDTH, shapes_transformer, work_folder

__all__ = ["shapes_transformer"]


def run(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
    module.main()


# Training


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """Trains 6 steps in a folder of the name; the blocks are not compiled, and there are 128 scenes."""
    monkeypatch.setattr(train, "accelerate", lambda net: net)
    monkeypatch.setattr(latents, "SCENES", 128)
    monkeypatch.setattr(latents, "SHARDS", 2)
    monkeypatch.setattr(latents, "EPOCHS", 1)  # the second shard begins at the third step

    def trained(name, *more):
        folder = tmp_path / name
        if not folder.exists():
            (work_folder(folder) / "transformer.pt").unlink()
        given = ["--work", folder, "--steps", 6, "--autoencoder-steps", 2, "--width", WIDTH, "--layers", 1]
        run(train, monkeypatch, *given, "--batch", 64, "--every", 2, "--look", 100, *more)
        return torch.load(folder / "transformer.pt")

    monkeypatch.setattr(train, "glance", lambda *_: "")
    return trained


def same(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_bits(toy, monkeypatch):
    whole = toy("whole")

    class Killed(Exception):
        pass

    class Dies(train.Muon):
        """Killed in the middle of the fourth step, where the last checkpoint is that of the second."""

        count = 0

        def step(self, closure=None):
            super().step(closure)
            self.count += 1
            if self.count == 4:
                raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(train, "Muon", Dies)
        toy("killed")
    resumed = toy("killed")
    assert whole["step"] == 6 and same(whole, resumed)


# Randomized positions


def test_spread_positions_are_a_canvas_of_every_size():
    torch.manual_seed(0)
    drawn = positions.draw(4096, 8, 1.0, 24)
    assert drawn.shape == (4096, 8) and drawn.dtype == torch.int64
    assert bool((drawn.diff(dim=1) > 0).all()) and int(drawn.min()) == 0 and int(drawn.max()) == 23
    share_of_plain = (drawn == torch.arange(8)).all(1).float().mean().item()
    assert 1 / 17 < share_of_plain < 2 / 17  # the canvas of 8, and by chance that of 9
    mixed = (positions.draw(4096, 8, 0.5, 24) != torch.arange(8)).any(1).float().mean().item()
    assert 0.42 < mixed < 0.5
    assert torch.equal(positions.draw(3, 8, 0.0, 24), torch.arange(8).expand(3, 8))


def test_randomized_positions_are_those_of_a_larger_canvas(monkeypatch):
    """An image at every third row and every second column is rotated as those tokens of a larger image are."""
    torch.manual_seed(0)
    model = transformer(WIDTH, 1)
    plain = model.rope_embedder.forward
    mask = torch.tensor([[1] * 5, [1] * 3 + [0] * 2])
    small, large = torch.randn(2, 8, 4, 6), torch.randn(2, 8, 12, 12)
    expected = plain(large, mask)
    drawn = iter([3 * torch.arange(4).expand(2, 4), 2 * torch.arange(6).expand(2, 6)])
    monkeypatch.setattr(positions, "draw", lambda *_: next(drawn))
    tokens, caption, image, joint, captions_of, lengths = positions.randomize(model, 1.0, 24).rope_embedder(small, mask)
    assert torch.equal(tokens, plain(small, mask)[0])
    assert torch.equal(caption, expected[1]) and captions_of == [5, 3] and lengths == [29, 27]
    wanted = expected[2].unflatten(1, (12, 12))[:, ::3, ::2].flatten(1, 2)
    assert torch.equal(image, wanted)
    for i, (start, end) in enumerate(zip(captions_of, lengths, strict=True)):
        assert torch.equal(joint[i, :start], expected[3][i, :start])
        assert torch.equal(joint[i, start:end], wanted[i])


@pytest.mark.parametrize(("share", "extent", "named"), [(1.5, 24, "share: expected 0 to 1, got 1.5"),
                                                        (0.5, 300, "extent: expected 1 to 256, got 300")])  # fmt: skip
def test_randomized_positions_refuse(share, extent, named):
    with pytest.raises(ValueError, match=named):
        positions.randomize(transformer(WIDTH, 1), share, extent)


@pytest.mark.slow
def test_a_killed_training_with_spread_positions_ends_with_the_same_bits(toy, monkeypatch):
    straight = toy("spread", "--spread", 0.5)
    update, seen = train.torch.nn.utils.clip_grad_norm_, []

    def killed(*arguments):
        seen.append(None)
        if len(seen) == 4:
            raise RuntimeError("killed")
        return update(*arguments)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(train.torch.nn.utils, "clip_grad_norm_", killed)
        toy("spread-killed", "--spread", 0.5)
    assert same(toy("spread-killed", "--spread", 0.5), straight)
    assert not same(toy("plain")["net"], straight["net"])


def test_a_request_to_stop_finishes_the_step(toy, monkeypatch, capsys):
    whole = toy("whole")

    class Asked(train.Muon):
        """The signal comes between the steps of the two optimizers."""

        count = 0

        def step(self, closure=None):
            super().step(closure)
            self.count += 1
            if self.count == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(train, "Muon", Asked)
        toy("stopped")
    assert ended.value.code == 130 and "stopped at step 3" in capsys.readouterr().out
    assert same(whole, toy("stopped"))


def test_stop_requests_give_the_handlers_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stop_requests() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_killed_autoencoder_ends_with_the_same_bits(monkeypatch, tmp_path):
    real = autoencoder.images_of
    monkeypatch.setattr(autoencoder, "images_of", lambda rng, count: real(rng, min(count, 8)))
    monkeypatch.setattr(autoencoder, "BATCH", 4)

    def trained(path, steps):
        return autoencoder.train_autoencoder(path, steps, lambda *_: None)

    torch.manual_seed(1)
    whole = trained(tmp_path / "whole.pt", 2)
    torch.manual_seed(1)
    monkeypatch.setattr(autoencoder, "rate", lambda step, steps, peak: real_rate(step, 2, peak))
    trained(tmp_path / "part.pt", 1)
    torch.randn(7)
    resumed = trained(tmp_path / "part.pt", 2)
    assert same(dict(whole.state_dict()), dict(resumed.state_dict()))
    assert whole.config.scaling_factor == resumed.config.scaling_factor


real_rate = autoencoder.rate


def test_the_fast_processor_computes_the_same():
    torch.manual_seed(0)
    net = transformer(64, 2)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    tok = tokenizer()
    given = tok(["a red circle", "two blue squares and a cross"], padding=True, return_tensors="pt")
    states = text_encoder(len(tok))(given.input_ids, output_hidden_states=True).hidden_states[-2]
    x, t = torch.randn(2, 8, 4, 6), torch.tensor([0.2, 0.7])
    with torch.no_grad():
        expected = net(x, t, states, given.attention_mask).sample
        net.rope_embedder.freqs_cis = [table.to(torch.complex64) for table in net.rope_embedder.freqs_cis]
        for block in (*net.context_refiner, *net.noise_refiner, *net.layers):
            block.attn.set_processor(fast.RealRotary())
        torch.testing.assert_close(net(x, t, states, given.attention_mask).sample, expected, rtol=1e-4, atol=1e-5)


# Export


def test_export_round_trip(tmp_path, monkeypatch, capsys):
    from diffusers import DiffusionPipeline

    work, out, state = work_folder(tmp_path / "work"), tmp_path / "model", tmp_path / "state"
    run(export, monkeypatch, "--work", work, "--out", out, "--write-state", state)
    assert "step 3" in capsys.readouterr().out
    averaged = torch.load(work / "transformer.pt")["averaged"]
    pipe = DiffusionPipeline.from_pretrained(out)
    assert same(dict(pipe.transformer.half().state_dict()), {name: value.half() for name, value in averaged.items()})
    text = (out / "README.md").read_text()
    assert "license: apache-2.0" in text and "trained for 3 steps" in text and "width 32, 1 joint blocks" in text
    assert "<!-- scale:begin -->\nNot yet measured.\n<!-- scale:end -->" in text  # as benchmarks/report looks for
    assert pipe.vae.config.scaling_factor == 0.5 and pipe.tokenizer("a red circle").input_ids[0] == 1
    loaded = load_state(state)
    assert loaded["step"] == 3 and same(loaded["averaged"], {n: v.half().float() for n, v in averaged.items()})
    run(export, monkeypatch, "--state", state, "--out", tmp_path / "again")
    for path in (path for path in out.rglob("*") if path.is_file()):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(out)).read_bytes(), path
    assert write_state(work, state) == 3


@pytest.mark.parametrize(("head_dim", "slowest"), [(32, 10000 ** (-10 / 12)), (64, 10000 ** (-26 / 28))])
def test_heads_of_another_width(head_dim, slowest, tmp_path):
    """The exported configuration is that of the weights; wider heads have more frequencies of rotation."""
    work = work_folder(tmp_path / "work")
    net = transformer(64, 1, head_dim=head_dim)
    torch.save({**torch.load(work / "transformer.pt"), "averaged": net.state_dict()}, work / "transformer.pt")
    denoiser = export.load_checkpoint(work, None)[1]
    assert denoiser.config.num_attention_heads == 64 // head_dim
    turns = denoiser.rope_embedder.freqs_cis[1][1].angle()  # of row 1
    assert len(turns) == {32: 6, 64: 14}[head_dim]
    assert (float(turns[0]), float(turns[-1])) == pytest.approx((1.0, slowest), rel=1e-4)
    with pytest.raises(ValueError, match="head_dim: expected one of 32, 64, 96 that divides 64, got 96"):
        transformer(64, 1, head_dim=96)


def test_pairs_of_a_wide_head_turn_about_as_fast_as_before():
    order = widen.pair_order()
    assert sorted(order) == list(range(32))
    before = [(axis, f) for axis, dims in enumerate(AXES[32]) for f in widen.frequencies(dims)] * 2
    after = [(axis, f) for axis, dims in enumerate(AXES[64]) for f in widen.frequencies(dims)]
    moved = [(before[old], new) for old, new in zip(order, after, strict=True) if before[old][0] != new[0]]
    assert len(moved) == 4 and all(old[1] <= 0.01 and new[1] < 0.001 for old, new in moved)  # these hardly turn
    images = [(before[old][1], new[1]) for old, new in zip(order, after, strict=True) if new[0] and new[1] > 0.002]
    assert all(0.4 < old / new < 2.1 for old, new in images)


def test_two_heads_become_one():
    """Without rotation and norms, the scores of the wide head are the sums of those of the two narrow ones."""
    torch.manual_seed(0)
    narrow, wide = transformer(128, 1), transformer(128, 1, head_dim=64)
    with torch.no_grad():
        narrow.layers[0].attn.norm_q.weight.normal_()
    wide.load_state_dict(widen.widened(narrow.state_dict()))
    x = torch.randn(5, 128)

    def scores(net) -> torch.Tensor:
        attn = net.layers[0].attn
        q, k = (part(x).unflatten(1, (attn.heads, -1)) for part in (attn.to_q, attn.to_k))
        return torch.einsum("nhd,mhd->hnm", q * attn.norm_q.weight, k * attn.norm_k.weight)

    torch.testing.assert_close(scores(wide), scores(narrow).unflatten(0, (2, 2)).sum(1))
    torch.testing.assert_close(wide.layers[0].attn.to_v.weight, narrow.layers[0].attn.to_v.weight)
    with pytest.raises(ValueError, match=r"norm_q.weight: expected shape \(32,\), got \(64,\)"):
        widen.widened(wide.state_dict())
    with pytest.raises(ValueError, match=r"to_q\.weight: expected a multiple of 64 rows, got 96"):
        widen.widened(transformer(96, 1).state_dict())


def test_training_continues_with_wide_heads(tmp_path, monkeypatch):
    work = work_folder(tmp_path / "narrow")
    net = transformer(64, 1)
    torch.save({**torch.load(work / "transformer.pt"), "averaged": net.state_dict()}, work / "transformer.pt")
    run(widen, monkeypatch, "--work", work, "--out", tmp_path / "wide", "--step", 7)
    denoiser, step = export.load_checkpoint(tmp_path / "wide", None)[1:]
    assert step == 7 and denoiser.config.num_attention_heads == 1
    state = torch.load(tmp_path / "wide" / "transformer.pt")
    assert state["optimizers"] is None and same(state["net"], state["averaged"])


def test_an_export_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "LIMIT", 1000)
    with pytest.raises(SystemExit, match="expected at most 1000 bytes"):
        run(export, monkeypatch, "--work", work_folder(tmp_path / "work"), "--out", tmp_path / "model")


# Evaluation


@pytest.fixture
def few(shapes_transformer, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "BATCH", 2)

    def evaluated(name, *more):
        given = ["--model", shapes_transformer, "--out", tmp_path / name, "--captions", 4, "--choose", 2]
        run(evaluate, monkeypatch, *given, "--sizes", "64", "32x48", "--steps", 1, *more)
        return tmp_path / name

    return evaluated


def test_evaluation_and_its_continuation(few, monkeypatch, capsys):
    whole = few("whole")
    rows, found = read_rows(whole / "images.csv"), read_rows(whole / "summary.csv")
    assert {(r["size"], r["policy"]) for r in rows if r["split"] == "choose"} == {
        ("32x48", name) for name in evaluate.CANDIDATES
    }
    assert {r["policy"] for r in rows if r["size"] == "64x64"} == {"off"}
    assert [r["seed"] for r in rows if r["policy"] == "off" and r["size"] == "64x64"] == list("0123")
    assert {r["policy"] for r in found if r["size"] == "32x48"} == {"off", "LogN", "LogNoRoot", "chosen"}
    assert {r["setting"] for r in found if r["policy"] == "chosen"} <= set(evaluate.CANDIDATES)

    calls, real = [], images.Sampler.__call__

    def stops(self, *args, **kwargs):
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="the same command continues"):
        patch.setattr(images.Sampler, "__call__", stops)
        few("stopped")
    stopped = whole.parent / "stopped"
    finished = sorted(stopped.glob("images/*/runs/*"))
    assert len(finished) == 4 and not (stopped / "images.csv").exists()
    killed = finished[0].with_name(f".{finished[0].name}.1")  # what a process leaves that cannot clean up
    finished[0].rename(killed)
    (killed / "run.json").write_text("{")
    assert few("stopped") and not killed.exists()
    for name in ("images.csv", "summary.csv"):
        assert (stopped / name).read_text() == (whole / name).read_text()

    with pytest.raises(ValueError, match=r"out: expected guidance_scale=4\.0, as in the evaluation"):
        few("whole", "--guidance-scale", 3)
    with pytest.raises(ValueError, match="out: expected captions="):
        few("whole", "--captions", 5)


def test_a_finished_evaluation_makes_no_image_again(few, monkeypatch):
    few("whole")
    monkeypatch.setattr(images.Sampler, "__call__", lambda *_, **__: pytest.fail("an image was made"))
    few("whole")


def test_what_a_wrong_option_says(few, shapes_transformer, tmp_path, monkeypatch, capsys):
    for arguments, message in (
        (["--sizes", "64", "64x64"], "--sizes: expected different sizes"),
        (["--sizes", "big"], "expected a size such as 64 or 64x128, got 'big'"),
        (["--choose", "-1"], "--choose: expected a whole number from 0, got -1"),
        (["--model", "nothing"], "--model: expected a diffusers folder or one of unet"),
    ):
        with pytest.raises(SystemExit) as ended:
            few("none", *arguments)
        assert ended.value.code == 2 and message in capsys.readouterr().err
    with pytest.raises(ValueError, match="multiples of 16"):
        few("none", "--sizes", "72")
    assert not (tmp_path / "none").exists()


def test_interpolated_positions_are_for_the_transformer(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(evaluate, monkeypatch, "--model", "unet", "--estimate", "--positions", "interpolated")
    assert "expected a Lumina2Transformer2DModel, got None" in capsys.readouterr().err


def test_estimate(few, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "BATCH", 2)
    few("none", "--estimate")
    shown = capsys.readouterr().out
    assert "core-minutes" in shown and str(4 + 4 * 4 + 2 * 7) in shown and not (tmp_path / "none").exists()


def test_shorter_padding_changes_nothing(shapes_transformer):
    sample = images.Sampler(shapes_transformer, steps=2, guidance_scale=4.0)
    given = ["a red circle", "three green crosses, a red square and a blue circle"], [0, 1], (64, 32), None
    short, full = (sample(*given, output_type="latent", max_sequence_length=length) for length in (images.LONGEST, 256))
    torch.testing.assert_close(short, full, rtol=1e-5, atol=1e-5)
    longest = max(len(sample.pipe.tokenizer(caption).input_ids) for caption in evaluate.captions_of("report", 500))
    assert longest <= images.LONGEST and sample.arguments == {"max_sequence_length": images.LONGEST}


def test_an_image_does_not_depend_on_its_batch(shapes_transformer):
    sample = images.Sampler(shapes_transformer, steps=2, guidance_scale=4.0)
    texts = ["a red circle", "three green crosses, a red square and a blue circle"]
    both = sample(texts, [0, 1], (64, 32), None)
    alone = sample(texts[1:], [1], (64, 32), None)
    np.testing.assert_allclose(np.asarray(both[1], int), np.asarray(alone[0], int), atol=1)
