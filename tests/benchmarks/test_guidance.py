"""The evaluation of guidance on shapes: its controls, captions, search, intervals, and a run of two steps."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch

from benchmarks.common import read_rows
from benchmarks.guidance import arms, choose, controls, cost, cost_joint, evaluate, maps_auc, premise, summary
from benchmarks.guidance.choose import Setting
from benchmarks.guidance.trials import MOST_REPORTED, Trials, reported_captions, selection_captions
from entropy_attn.evaluation.methods import nouns, pairs, words_of_shapes
from entropy_attn.guidance import TSAM, Prompt
from entropy_attn.prompts import Text
from entropy_attn.shapes import load_pipeline
from entropy_attn.shapes.words import objects


@pytest.fixture(scope="module")
def tokenizer():
    return load_pipeline().tokenizer


def prompt_of(caption: str, tokenizer, rows: list[list[float]] | None = None) -> Prompt:
    text = Text(caption, tokenizer)
    attention = torch.zeros(len(text), len(text))
    if rows is not None:
        attention[1 : 1 + len(rows), 1 : 1 + len(rows)] = torch.tensor(rows)
    return Prompt(text, text.real, attention)


# The controls, and the words that each method gets


def test_words_of_every_object(tokenizer):
    text = Text("a red circle, a red square and two green crosses", tokenizer)
    assert objects(text) == [((1,), (2,), (3,)), ((5,), (6,), (7,)), ((9,), (10,), (11,))]
    words = words_of_shapes(text)
    assert nouns(words) == [3, 7, 11]
    assert pairs(words) == [(2, 3), (6, 7), (10, 11)]


def test_oracle_matrix(tokenizer):
    found = arms.oracle(prompt_of("a red circle above a blue cross", tokenizer), gamma=2.0)
    little = 0.1**2  # the power is applied before rows are normalized
    rows = [
        [1],
        [1, 1],
        [1, 1, 1],
        [little, little, little, 1],
        [little, little, little, little, 1],
        [little, little, little, little, 1, 1],
        [little, little, little, little, 1, 1, 1],
    ]
    expected = torch.tensor([[value / sum(row) for value in row] + [0.0] * (7 - len(row)) for row in rows])
    torch.testing.assert_close(found, expected)


def test_shuffled_matrix(tokenizer, monkeypatch):
    prompt = prompt_of("a red circle", tokenizer, [[0.1, 0, 0], [0.2, 0.2, 0], [0.02, 0.03, 0.05]])
    monkeypatch.setattr("random.Random.shuffle", lambda self, order: order.__setitem__(slice(None), [2, 0, 1]))
    # Normalized rows: 1; 0.5 0.5; 0.2 0.3 0.5. The third word comes first, then the first, then the second.
    expected = torch.tensor([[1, 0, 0], [0.2 / 1.2, 1 / 1.2, 0], [0.3 / 1.3, 0.5 / 1.3, 0.5 / 1.3]])
    torch.testing.assert_close(arms.shuffled(prompt, gamma=1.0), expected)


def test_shuffled_is_reproducible_and_differs_from_t(tokenizer):
    attention = torch.rand(11, 11, generator=torch.Generator().manual_seed(0)).tril().tolist()
    prompt = prompt_of("a green circle, a yellow circle and a red cross", tokenizer, attention)
    first, again = (arms.shuffled(prompt, gamma=4.0) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(first, first.tril())
    torch.testing.assert_close(first.sum(-1), torch.ones(11))
    assert not torch.allclose(first, TSAM(gamma=4.0).text_matrix(prompt))


@pytest.mark.parametrize("arm", arms.ARMS[1:])
def test_every_arm_depends_on_the_prompt_and_has_a_gradient(arm, tokenizer):
    guidance = arms.guidance_of(arm, 3.0, 4.0, range(2))
    assert guidance.alpha == 3.0 and guidance.steps == (0, 1) and guidance.refine_at == ()
    assert guidance.map_size == (8, 8)  # as in the committed tables
    maps = torch.rand(4, 4, 77, generator=torch.Generator().manual_seed(0))
    losses = []
    for caption in ("a red circle above a blue cross", "a red circle, a blue cross and a green square"):
        attention = torch.rand(12, 12, generator=torch.Generator().manual_seed(1)).tril().tolist()
        leaf = maps.clone().requires_grad_()
        prompt = prompt_of(caption, tokenizer, attention)
        losses.append(guidance.loss(leaf, prompt))
        assert torch.autograd.grad(losses[-1], leaf)[0].abs().sum() > 0
    assert losses[0].item() != losses[1].item()


def test_arms_have_their_papers_schedule():
    ranges = {arm: arms.guidance_of(arm, 1.0, 4.0, range(1)).step_range for arm in arms.ARMS[1:]}
    constant = {arm for arm, ends in ranges.items() if ends == (1.0, 1.0)}
    assert constant == {"tsam-paper", "syngen"}
    assert arms.guidance_of("none", 0.0, None, range(1)) is None
    with pytest.raises(ValueError, match=r"arm: expected one of .*, got 'x'"):
        arms.guidance_of("x", 1.0, None, range(1))


# Captions and the search


def test_reported_captions_are_of_several_kinds_and_were_not_used_for_selection():
    reported, chosen_on = reported_captions(), selection_captions(40)
    evaluate.disjoint(reported, chosen_on)
    assert len(reported) == MOST_REPORTED and len(chosen_on) == 40
    for group in (reported, chosen_on):
        assert all(len(caption.request.kinds) > 1 for caption in group)
        assert [caption.split for caption in group[:4]] == ["seen", "held-out"] * 2
    assert reported_captions(10) == reported[:10]
    with pytest.raises(AssertionError):
        evaluate.disjoint(reported, [*chosen_on, reported[3]])
    with pytest.raises(ValueError, match="captions: expected 1 to 300, got 301"):
        reported_captions(301)


def test_first_latents_differ_between_captions_and_seeds_but_not_between_arms():
    first, second = reported_captions(2)
    drawn = [torch.randn(2, generator=g) for g in (first.generator(1), second.generator(1), first.generator(2))]
    assert len({tuple(t.tolist()) for t in drawn}) == 3
    assert torch.equal(drawn[0], torch.randn(2, generator=first.generator(1)))


def test_search_finds_the_best_and_extends_the_grid_at_its_edges():
    def peak_at(alpha: float):
        return lambda setting: -abs(math.log(float(setting.alpha) / alpha))

    found = choose.search("conform", peak_at(2.0))
    assert (found[0], len(found)) == (Setting("conform", "2"), 6)
    found = choose.search("conform", peak_at(32.0))
    assert (found[0], len(found)) == (Setting("conform", "32"), 8)  # 32 and then 64, because 32 was at the edge
    assert len(choose.search("conform", peak_at(1e9))) == 6 + choose.EXTENSIONS
    assert choose.search("conform", lambda setting: 0.0)[0].alpha == "0.0625"  # of equal scores, the weakest


def test_search_of_tsam_tries_gammas_with_the_best_alpha():
    best = {"2": 0.3, "4": 0.2, "8": 0.1}
    found = choose.search("tsam-released", lambda s: best[s.gamma] - abs(math.log(float(s.alpha) / 10)))
    assert found[0] == Setting("tsam-released", "10", "2") and len(found) == 6
    assert {s.gamma for s in found if s.alpha == "10"} == {"2", "4", "8"}


def test_every_search_has_the_same_number_of_settings():
    counts = {arm: len(alphas) + 2 * (arm in arms.TSAM_ARMS) for arm, alphas in choose.ALPHAS.items()}
    assert set(counts) == set(arms.ARMS[1:]) and set(counts.values()) == {6}


# Rows and intervals


def test_an_image_with_an_incomplete_row_is_drawn_again(tmp_path):
    path = tmp_path / "rows.csv"
    first, second = reported_captions(4)[::2]
    row = {"seed": "1", "split": "seen", "caption": "0", "arm": "none", "alpha": "", "gamma": "", "presence": "1",
           "count": "1", "binding": "0", "relation": "", "found": "2"}  # fmt: skip
    Trials(path).add([row])
    with path.open("a") as file:
        file.write("1,seen,1,none,,,1,1")
    trials = Trials(path)
    assert trials.missing(Setting("none"), [first, second], 1) == [second]
    assert trials.missing(Setting("none"), [first], 2) == [first]
    assert trials.missing(Setting("conform", "1"), [first], 1) == [first]
    assert trials.of(Setting("none")) == [row]
    assert path.read_text().count("\n") == 2


def test_interval_draws_captions_with_all_their_seeds():
    mean, low, high = summary.interval([[0.0] * 4, [1.0] * 4])
    assert (mean, low, high) == (0.5, 0.0, 1.0)  # a quarter of all draws is twice the same caption
    assert summary.interval([[0.25]] * 5) == (0.25, 0.25, 0.25)
    assert summary.interval([[1.0, 1.0, 1.0], [0.0]])[0] == 0.75
    with pytest.raises(ValueError, match="groups: expected at least two"):
        summary.interval([[1.0]])


def test_interval_of_many_captions_is_that_of_the_normal_distribution():
    mean, low, high = summary.interval([[float(i % 4 == 0)] for i in range(400)])
    width = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert mean == 0.25
    assert (low, high) == pytest.approx((0.25 - width, 0.25 + width), abs=0.01)


def test_differences_compare_images_of_one_caption_and_seed():
    none = {("seen", str(i), "1"): {"presence": float(i % 2)} for i in range(6)}
    better = {key: {"presence": 1.0} for key in none} | {("seen", "9", "1"): {"presence": 1.0}}  # one has no partner
    rows = {row["arm"]: row for row in summary.summarize({"none": none, "conform": better}) if row["split"] == "seen"}
    assert rows["none"]["mean"] == "0.5000" and "difference" not in rows["none"]
    assert rows["conform"]["difference"] == "0.5000" and rows["conform"]["captions"] == 7
    assert float(rows["conform"]["difference_low"]) < 0.5 < float(rows["conform"]["difference_high"])


def test_seeds_of_a_caption_are_drawn_together():
    none = {("seen", str(i % 2), str(i)): {"presence": float(i % 2)} for i in range(8)}
    rows = summary.summarize({"none": none, "conform": {key: {"presence": 1.0} for key in none}})
    assert {row["captions"] for row in rows} == {2} and {row["seeds"] for row in rows} == {8}
    assert (rows[0]["low"], rows[0]["high"]) == ("0.0000", "1.0000")
    assert (rows[-1]["difference_low"], rows[-1]["difference_high"]) == ("0.0000", "1.0000")


def test_premise_compares_within_the_row_of_one_noun(tokenizer):
    text = Text("a red circle and a blue cross", tokenizer)  # colors are words 1 and 5, the second noun is word 6
    T = torch.zeros(7, 7)
    T[6, 5], T[6, 1] = 0.4, 0.1
    assert premise.pairs_of(T, text) == [pytest.approx({"bound": 0.4, "unbound": 0.1, "bound - unbound": 0.3,
                                                         "strongest": 1.0})]  # fmt: skip


# Complete runs


def test_two_steps_from_end_to_end(tmp_path, monkeypatch):
    pictures, table, figure = tmp_path / "pictures.csv", tmp_path / "tsam.csv", tmp_path / "tsam.png"

    def run(module, *options) -> None:
        monkeypatch.setattr(sys, "argv", ["x", "--pictures", str(pictures), *map(str, options)])
        module.main()

    small = ("--captions", 4, "--seeds", 1, "--steps", 2, "--guided", 1)
    run(evaluate, *small, "--limit", 5)
    assert len(read_rows(pictures)) == 5
    run(evaluate, *small)
    rows = read_rows(pictures)
    assert {row["arm"] for row in rows} == set(arms.ARMS)
    assert len(rows) == 4 * len(arms.ARMS)
    run(evaluate, *small)
    assert read_rows(pictures) == rows
    run(summary, "--csv", table, "--figure", figure)
    assert {(row["arm"], row["split"]) for row in read_rows(table)} == {
        (a, s) for a in arms.ARMS for s in summary.SPLITS
    }
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_cost_compares_equal_steps(tokenizer):
    unet = cost.unet_of(layers_per_block=1, width_divisor=4)
    g = torch.Generator().manual_seed(0)
    latents, embedding = torch.randn(1, 4, 16, 8, generator=g), torch.randn(1, 77, 768, generator=g)
    steps = {name: make(unet, embedding, cost.prompt(), TSAM()) for name, make in cost.STEPS.items()}
    before = dict(unet.attn_processors)
    assert cost.check(steps, latents)["gradient_cosine"] > 0.999
    assert unet.attn_processors == before
    other = cost.their_step(unet, embedding, cost.prompt(), TSAM(gamma=0.5))
    with pytest.raises(SystemExit, match="nothing is measured"):
        cost.check({**steps, "ours": other}, latents)


def test_the_cost_of_a_transformer_compares_equal_steps(tokenizer):
    args = cost_joint.arguments(["--size", "64", "--layers", "3", "--heads", "1"])
    model, latents, text = cost_joint.prepared(args)
    of = cost_joint.prompt()
    steps = {name: make(model, text, of) for name, make in cost_joint.STEPS.items()}
    assert cost_joint.check(steps, latents)["maps_apart"] < 1e-5
    with pytest.raises(SystemExit, match="nothing is measured: eager"):
        cost_joint.check({**steps, "eager": lambda z: (z + 1.0, steps["ours"](z)[1])}, latents)
    with pytest.raises(SystemExit):
        cost_joint.arguments(["--size", "100"])


def test_cost_keeps_other_rows(tmp_path):
    path = tmp_path / "cost.csv"
    row = {"device": "a", "size": 512, "layers_per_block": 2, "width_divisor": 1, "dtype": "float32", "ours_ms": "1"}
    cost.keep(path, row)
    cost.keep(path, row | {"size": 768})
    cost.keep(path, row | {"ours_ms": "2"})
    assert [(old["size"], old["ours_ms"]) for old in read_rows(path)] == [("768", "1"), ("512", "2")]


# Whether the maps predict a failure


def test_statistics_of_maps(tokenizer):
    text = Text("a red circle and a blue square", tokenizer)  # red 2, circle 3, blue 6, square 7
    maps = torch.zeros(7, 7, len(text))
    maps[1, 1, 2] = 1.0  # far from the borders, and from each other under a 3 x 3 kernel
    maps[1, 1, 3] = 0.5
    maps[5, 5, 6] = 1.0
    maps[5, 1, 7] = 0.25
    found = maps_auc.statistics(maps, text)
    assert found == pytest.approx({"noun-noun": 0.0, "color-noun": 1.0, "peak": 0.75}, abs=1e-6)
    maps[..., 7] = maps[..., 3]
    assert maps_auc.statistics(maps, text)["noun-noun"] == pytest.approx(1.0, abs=1e-6)


def test_auc_by_hand():
    values = np.array([3.0, 1.0, 2.0, 2.0, 5.0])
    failed = np.array([True, False, False, True, False])
    groups = np.array([0, 0, 1, 1, 1])
    # Failed 3 is above 1 and 2, not 5; failed 2 is above 1, equal to 2, below 5. Then the first caption counts twice.
    weights = np.array([[1.0, 1.0], [2.0, 1.0]])
    pooled, within = maps_auc.auc(values, failed, groups, weights)
    assert pooled == pytest.approx([(2 + 1.5) / 6, (4 * 1 + 2 * 1 + 2 * 0 + 2 * 1 + 0.5 + 0) / 12])
    assert within == pytest.approx([(1 + 0.5 + 0) / 3, (2 * 1 + 0.5 + 0) / 4])  # 3 > 1; 2 = 2; 2 < 5
    assert all(np.isnan(each).all() for each in maps_auc.auc(values, np.ones(5, dtype=bool), groups, weights))


def test_maps_auc_runs_and_continues(tmp_path, monkeypatch):
    pictures, table = tmp_path / "images.csv", tmp_path / "auc.csv"
    arguments = ["maps_auc", "--captions", "2", "--steps", "2", "--at", "1", "--pictures", str(pictures)]
    monkeypatch.setattr(maps_auc, "RESAMPLES", 20)
    monkeypatch.setattr(sys, "argv", [*arguments, "--seeds", "1", "--csv", str(table)])
    maps_auc.main()
    first = read_rows(pictures)
    assert len(first) == 2
    monkeypatch.setattr(sys, "argv", [*arguments, "--seeds", "1", "2", "--csv", str(table)])
    maps_auc.main()
    assert read_rows(pictures)[:2] == first and len(read_rows(pictures)) == 4
    rows = read_rows(table)
    assert {(row["split"], row["size"], row["statistic"]) for row in rows} == {
        (split, size, name)
        for split in ("seen", "held-out", "all")
        for size in ("8x8", "16x16")
        for name in maps_auc.STATISTICS
    }
    assert {row["images"] for row in rows if row["split"] == "all"} == {"4"}


# The controls


def test_rows_of_an_evaluation_are_joined(tmp_path):
    (tmp_path / "guidance.csv").write_text("arm,metric,value\noff,presence,0.5\ntsam,presence,0.7\ntsam,TIFA,0.3\n")
    names = ",".join(controls.REPAIRS)
    numbers = ",".join(str(number) for number in range(len(controls.REPAIRS)))
    (tmp_path / "repairs.csv").write_text(f"arm,metric,{names}\ntsam,presence,{numbers}\n")
    rows = controls.joined(tmp_path)
    assert [(row["arm"], row["metric"], row["value"], row["failed"], row["damaged_share_high"]) for row in rows] == [
        ("off", "presence", "0.5", "", ""),
        ("tsam", "presence", "0.7", "0", "9"),
        ("tsam", "TIFA", "0.3", "", ""),
    ]
    with pytest.raises(ValueError, match=r"--evaluation: expected a folder with guidance.csv"):
        controls.joined(tmp_path / "nothing")
