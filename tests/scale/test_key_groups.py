"""What policies give keys: TACA, prompt weights, regions; and the entropy that is held by statistics."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from entropy_attn.prompts import TextPart
from entropy_attn.scale import (
    TACA,
    CallInfo,
    Constant,
    Fixed,
    KeyGroups,
    Layers,
    LogN,
    Product,
    PromptWeights,
    Regions,
    Steps,
    TargetEntropy,
    resolve_scale,
)
from entropy_attn.scale.call import policies_in
from entropy_attn.scale.parsing import parse_scale
from tests.support.tiny_models import TEXT_TOKENS, make_tokenizer

JOINT = CallInfo(
    "blocks.0.attn", "joint", 22, 22, 2, 16, train_tokens=4, text_tokens=6, text="last", latent_size=(8, 8)
)
FIRST = replace(JOINT, text="first")
CROSS = CallInfo("up.attn2", "cross", 16, 6, 2, 16, text_tokens=6, text="all", latent_size=(8, 8))
SELF = CallInfo("up.attn1", "self", 16, 16, 2, 16, train_tokens=4, latent_size=(8, 8))


def test_where_text_and_image_are():
    assert (JOINT.text_keys, JOINT.image_rows) == ((16, 22), (0, 16))
    assert (FIRST.text_keys, FIRST.image_rows) == ((0, 6), (6, 22))
    assert (CROSS.text_keys, CROSS.image_rows) == ((0, 6), (0, 16))
    assert (SELF.text_keys, SELF.image_rows) == (None, (0, 16))
    of_image = replace(FIRST, seqlen_q=16)  # the queries are of the image alone
    assert (of_image.text_keys, of_image.image_rows) == ((0, 6), (0, 16))
    edited = replace(FIRST, seqlen_q=26, seqlen_k=26, reference_tokens=4)
    assert edited.image_rows == (6, 22)


def test_a_policy_may_return_key_groups():
    groups = KeyGroups(torch.tensor(0.3), key_bias=[((0, 2), 1.0)])
    found = resolve_scale(lambda info: groups, JOINT)
    assert found.scale is groups.scale and found.key_bias is groups.key_bias
    assert resolve_scale(lambda info: replace(groups, scale=1), JOINT).scale == 1.0
    with pytest.raises(ValueError, match=r"got a tensor of torch.float32 and shape \(3,\)"):
        resolve_scale(lambda info: replace(groups, scale=torch.ones(3)), JOINT)
    with pytest.raises(ValueError, match="key_scale, key_bias: expected at least one"):
        KeyGroups(0.3)
    with pytest.raises(ValueError, match="branch: expected None or 'cond', got 'uncond'"):
        replace(groups, branch="uncond")


def test_a_product_has_the_groups_of_one_policy_and_the_scale_of_all():
    taca = TACA(1.5, from_timestep=None)
    found = Product(LogN(), taca, Constant(2.0))(JOINT)
    assert found.scale == pytest.approx(2.0 * LogN()(JOINT))
    assert found.key_scale == [((16, 22), 1.5)] and found.key_rows == (0, 16)
    assert Product(taca, Fixed(0.1))(SELF) == pytest.approx(0.1)
    with pytest.raises(
        ValueError, match=r"expected one that returns KeyGroups for a call, got 2 in layer 'blocks\.0\.attn'"
    ):
        Product(taca, taca)(JOINT)


def test_the_policies_of_which_one_is_made():
    taca, logn = TACA(), LogN()
    made = Steps(Product(logn, Layers({"a": taca, "b": None})), 0, 3)
    assert policies_in(made) == (logn, taca)
    assert policies_in(None) == () and policies_in(taca) == (taca,)


def test_taca_is_for_image_rows_text_keys_and_noise():
    noisy = replace(FIRST, timestep=970.0)
    found = TACA()(noisy)
    assert (found.scale, found.key_scale, found.key_rows) == (None, [((0, 6), 1.2)], (6, 22))
    assert TACA()(replace(noisy, timestep=969.9)) is None
    assert TACA(scale=0.2)(replace(noisy, timestep=3.0)) == 0.2
    for info in (replace(SELF, timestep=999.0), replace(CROSS, timestep=999.0)):
        assert TACA()(info) is None
    with pytest.raises(ValueError, match=r"timestep of layer 'blocks\.0\.attn' is not known; give Steps"):
        TACA()(JOINT)
    assert TACA(from_timestep=None)(JOINT).key_scale == [((16, 22), 1.2)]
    assert TACA().needs_timestep and not TACA(from_timestep=None).needs_timestep
    assert parse_scale("taca:factor=1.4:from_timestep=none") == TACA(1.4, None)


def text_of(policy, prompts=("ab c",)):
    policy.attach((TextPart(make_tokenizer(), TEXT_TOKENS),))
    policy.begin(list(prompts))
    return policy


def test_prompt_weights_are_logarithms_on_the_words():
    info = replace(CROSS, seqlen_k=TEXT_TOKENS, text_tokens=TEXT_TOKENS)
    found = text_of(PromptWeights({"ab": 2.0, "c": 0.0, (0, 5): 0.5}))(info)
    # start, a, b</w>, c</w>, end and padding
    wanted = [math.log(0.5), math.log(2), math.log(2), -math.inf, 0, math.log(0.5), 0]
    torch.testing.assert_close(found.key_bias, torch.tensor(wanted))
    assert found.key_rows == (0, 16) and found.branch == "cond" and found.key_scale is None
    of_joint = PromptWeights({2: 3.0}, branch=None, scale=0.1)
    assert of_joint(JOINT).key_bias.tolist() == pytest.approx([0.0] * 18 + [math.log(3)] + [0.0] * 3)
    assert of_joint(FIRST).key_bias.tolist() == pytest.approx([0.0] * 2 + [math.log(3)] + [0.0] * 19)
    assert of_joint(JOINT).scale == of_joint(SELF) == 0.1 and of_joint(JOINT).branch is None


def test_words_that_are_not_there():
    info = replace(CROSS, seqlen_k=TEXT_TOKENS, text_tokens=TEXT_TOKENS)
    with pytest.raises(ValueError, match="'d' is not in the prompt 'ab c'"):
        text_of(PromptWeights({"d": 2.0}))(info)
    with pytest.raises(ValueError, match="weights: the prompt is not known"):
        text_of(PromptWeights({"ab": 2.0}), ())(info)
    with pytest.raises(ValueError, match="weights: expected one prompt for all images of a batch, got 2"):
        text_of(PromptWeights({"ab": 2.0}), ("ab", "ab c"))(info)
    with pytest.raises(ValueError, match="regions: 'ab' needs the pipeline's tokenizer"):
        Regions({"ab": (0, 0, 1, 1)}).attach(())
    with pytest.raises(ValueError, match="weights: expected positions below 6, the tokens of text"):
        PromptWeights({6: 2.0})(JOINT)
    Regions({3: (0, 0, 1, 1)}).attach(())  # positions need no text


def dense(found: KeyGroups) -> torch.Tensor:
    return found.key_bias[found.key_rows]


def test_regions_are_biases_of_the_words_by_query():
    mask = torch.zeros(8, 8)
    mask[4:, :2] = 1
    policy = Regions({1: (0.5, 0.0, 1.0, 0.5), (2, 4): mask}, inside=0.25, outside=-3.0)
    for info, first, begin in ((CROSS, 0, 0), (JOINT, 16, 0), (FIRST, 0, 6)):
        wanted = torch.zeros(info.seqlen_q, info.seqlen_k)
        image = wanted[begin : begin + 16].view(4, 4, -1)  # a view of the queries' grid
        image[..., first + 1] = -3.0
        image[:2, 2:, first + 1] = 0.25
        for position in (2, 4):
            image[..., first + position] = -3.0
            image[2:, 0, first + position] = 0.25
        found = policy(info)
        assert torch.equal(dense(found), wanted)
        assert len(found.key_bias) <= 4, "a row for each group of queries"
        assert found.branch == "cond"
    assert policy(SELF) is None
    wide = replace(CROSS, seqlen_q=8, latent_size=(4, 8))  # 2 x 4 tokens
    assert dense(policy(wide))[:, 1].tolist() == [-3.0, -3.0, 0.25, 0.25] + [-3.0] * 4


def test_a_region_smaller_than_a_token_has_one():
    found = Regions({0: (0.51, 0.51, 0.52, 0.52)})(CROSS)
    assert (dense(found)[:, 0] == 0).nonzero().flatten().tolist() == [10]


def test_regions_need_the_grid():
    for info in (replace(CROSS, latent_size=None), replace(CROSS, seqlen_q=15)):
        with pytest.raises(ValueError, match=r"queries of layer 'up\.attn2' are no grid of one image"):
            Regions({0: (0, 0, 1, 1)})(info)


# -- the entropy that is held ----------------------------------------------------------------------------------------


def gaussian(info: CallInfo, spread: float, scale: float | torch.Tensor) -> torch.Tensor:
    """The variance (B, H, queries) of logits with this variance at the default scale."""
    factor = torch.as_tensor(scale) * math.sqrt(info.head_dim)
    return (spread * factor.square()).expand(info.num_heads)[None, :, None].expand(2, -1, 5)


def test_one_step_is_exact_for_gaussian_logits_from_any_factor():
    info = replace(SELF, seqlen_k=64, train_tokens=16, step=1)
    for used in (0.25, 0.4, torch.tensor([0.2, 0.5])):
        policy = TargetEntropy(clamp=(None, None))
        policy.learn(replace(info, step=0), used, torch.zeros(2, 2, 5), gaussian(info, 1.7, used))
        factor = policy(info) * 4
        # H = ln N - V / 2 with V = 1.7 factor^2: ln 4 below that of the default scale
        torch.testing.assert_close(1.7 * factor.square() / 2, torch.full((2,), 1.7 / 2 + math.log(4)))


def test_heads_and_layers():
    info = replace(SELF, seqlen_k=64, train_tokens=16, step=1)
    variance = torch.tensor([1.0, 4.0])[None, :, None].expand(1, 2, 3)
    wanted = {"head": [1.0, 4.0], "layer": [2.5, 2.5]}
    for per, spreads in wanted.items():
        policy = TargetEntropy(per=per)
        policy.learn(replace(info, step=0), 0.25, variance, variance)
        torch.testing.assert_close(policy(info) * 4, (1 + 2 * math.log(4) / torch.tensor(spreads)).sqrt())


def test_it_waits_for_statistics_of_this_generation_and_is_bounded():
    info = replace(SELF, seqlen_k=64, train_tokens=16)
    policy = TargetEntropy()
    assert policy(info) is None and policy.wants_statistics(info)
    policy.learn(info, 0.25, torch.zeros(1, 2, 3), torch.full((1, 2, 3), 1e-6))
    assert policy(info) is None, "the first step has the default scale"
    later = replace(info, step=1)
    torch.testing.assert_close(policy(later), torch.full((2,), 2.0 / 4))
    assert policy(replace(info, step=2)) is None
    policy.begin(None)
    assert policy(later) is None
    smaller = replace(later, seqlen_k=4)
    policy.learn(replace(smaller, step=0), 0.25, torch.zeros(1, 2, 3), torch.ones(1, 2, 3))
    torch.testing.assert_close(policy(smaller), torch.full((2,), 0.5 / 4))  # ln 4 up is more than there is
    same = replace(later, seqlen_k=16)
    assert policy(same) is None and not policy.wants_statistics(same)


def test_text_counts_in_the_entropy():
    info = replace(JOINT, step=1)  # 16 image tokens, 4 at training, 6 of text
    policy = TargetEntropy()
    policy.learn(replace(info, step=0), 0.25, torch.zeros(1, 2, 3), torch.full((1, 2, 3), 3.0))
    torch.testing.assert_close(policy(info) * 4, torch.full((2,), math.sqrt(1 + 2 * math.log(22 / 10) / 3)))


def test_the_training_size_has_to_be_known():
    unknown = replace(SELF, train_tokens=None)
    assert not TargetEntropy().wants_statistics(unknown)
    with pytest.raises(ValueError, match=r"'up.attn1' is not known; give TargetEntropy\(train_tokens=...\)"):
        TargetEntropy()(unknown)
    assert TargetEntropy(train_tokens=4).wants_statistics(unknown)
    assert TargetEntropy().needs_train_tokens and not TargetEntropy(train_tokens=4).needs_train_tokens
    assert parse_scale("target:per=layer:clamp=..3") == TargetEntropy(per="layer", clamp=(None, 3))
