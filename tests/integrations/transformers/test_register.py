"""This package's attention under a name of transformers, against attention by hand in float64."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModel,
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    Dinov2Config,
    Dinov2Model,
    Gemma2Config,
    Gemma2Model,
    GPT2Config,
    GPT2Model,
    GptOssConfig,
    GptOssModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    StaticCache,
    T5Config,
    T5EncoderModel,
    ViTConfig,
    ViTModel,
)

import entropy_attn as ea
from entropy_attn.errors import Unroutable
from entropy_attn.scale import TACA, Constant, DyPE, Fixed, LogN, OfBranch, Schedule, Steps, TargetEntropy

SMALL = {"hidden_size": 48, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**SMALL, "vocab_size": 50, "max_position_embeddings": 32}
GROUPED = {**TEXT, "num_key_value_heads": 2, "pad_token_id": 0}
PICTURE = {**SMALL, "image_size": 20, "patch_size": 4}  # 25 patches, an odd number
IDS = torch.randint(3, 49, (2, 11), generator=torch.Generator().manual_seed(0))
PIXELS = torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(0))
RIGHT = torch.tensor([[1] * 7 + [0] * 4, [1] * 11])
LEFT = RIGHT.flip(1)

# name: (class, configuration, padding)
MODELS = {
    "bert": (BertModel, BertConfig(**TEXT), RIGHT),
    "clip": (CLIPTextModel, CLIPTextConfig(**TEXT, bos_token_id=1, eos_token_id=2, pad_token_id=0), RIGHT),
    "gpt2": (GPT2Model, GPT2Config(vocab_size=50, n_positions=32, n_embd=48, n_layer=2, n_head=4), LEFT),
    "llama, grouped heads": (LlamaModel, LlamaConfig(**GROUPED), LEFT),
    "mistral, sliding window": (MistralModel, MistralConfig(**GROUPED, sliding_window=4), LEFT),
    "t5, position bias": (
        T5EncoderModel, T5Config(vocab_size=50, d_model=48, d_kv=12, d_ff=32, num_layers=2, num_heads=4), RIGHT
    ),
    "dinov2": (Dinov2Model, Dinov2Config(**PICTURE, mlp_ratio=1), None),
    "siglip": (SiglipVisionModel, SiglipVisionConfig(**PICTURE), None),
    "vit": (ViTModel, ViTConfig(**PICTURE), None),
}  # fmt: skip
QUERY_OR_KEY = ("query", "key", "q_proj", "k_proj", "c_attn", ".q.", ".k.")
DECODERS = [name for name in MODELS if name.startswith(("gpt2", "llama", "mistral"))]


def make(name: str, implementation: str = "eager", dtype: torch.dtype = torch.float32):
    cls, config, _ = MODELS[name]
    torch.manual_seed(0)
    model = cls._from_config(type(config)(**config.to_dict()), attn_implementation="eager").eval()
    with torch.no_grad():  # spread the logits, so that attention is far from uniform
        for key, weight in model.named_parameters():
            if weight.dim() > 1 and any(
                part in key for part in ("query", "key", "q_proj", "k_proj", "c_attn", ".q.", ".k.")
            ):
                weight.mul_(12.0)
    model = model.to(dtype)
    model.set_attn_implementation(implementation)
    return model


def run(name: str, implementation: str, dtype: torch.dtype, padded: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden states of tokens that are no padding, and the gradient of a loss on them on the first weights."""
    model, padding = make(name, implementation, dtype), MODELS[name][2]
    if padding is None:
        out = model(PIXELS.to(dtype)).last_hidden_state
        kept = torch.ones(out.shape[:2], dtype=torch.bool)
    else:
        out = model(IDS, attention_mask=padding if padded else None).last_hidden_state
        kept = padding.bool() if padded else torch.ones_like(padding).bool()
    weights = torch.linspace(-1, 1, out.shape[-1], dtype=dtype)
    first = next(weight for weight in model.parameters() if weight.dim() > 1)
    (gradient,) = torch.autograd.grad((out * weights)[kept].sum(), first)
    return out[kept].detach(), gradient


def attention_by_hand(module, query, key, value, mask, scaling, position_bias=None, **options):
    """Attention with its probabilities; eager attention is no oracle, because its softmax is in float32."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.mT * scaling
    if position_bias is not None:
        scores = scores + position_bias
    if mask is None and options.get("is_causal", getattr(module, "is_causal", True)):
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
        seen = mask.expand_as(scores).any(-1, keepdim=True)
        scores = scores.masked_fill(~seen, 0.0)
    return (scores.softmax(-1) @ value).transpose(1, 2), None


@pytest.fixture(scope="module", autouse=True)
def _by_hand():
    AttentionInterface.register("by_hand", attention_by_hand)
    AttentionMaskInterface.register("by_hand", AttentionMaskInterface()["sdpa"])
    yield
    del AttentionInterface._global_mapping["by_hand"], AttentionMaskInterface._global_mapping["by_hand"]


@pytest.fixture
def name():
    with ea.transformers.register() as registration:
        yield registration.name


@pytest.mark.parametrize("padded", [False, True], ids=["no padding", "padding"])
@pytest.mark.parametrize("model", MODELS)
def test_outputs_and_gradients_are_those_of_eager_attention(model, padded, name):
    if padded and MODELS[model][2] is None:
        pytest.skip("pictures have no padding")
    exact, eager = run(model, "by_hand", torch.float64, padded), run(model, "eager", torch.float32, padded)
    found = run(model, name, torch.float32, padded)
    for ours, theirs, oracle in zip(found, eager, exact, strict=True):
        allowed = 2 * (theirs - oracle).abs().max() + 1e-6 * oracle.abs().max()
        assert (ours - oracle).abs().max() <= allowed < 1e-3 * oracle.abs().max()


def test_float64_is_computed_in_float64(name):
    found, exact = (run("vit", implementation, torch.float64, False) for implementation in (name, "by_hand"))
    for ours, oracle in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, oracle, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("model", DECODERS)
def test_decoding_with_a_cache(model, name):
    eager, ours = make(model), make(model, name)
    positions, past, found = (LEFT.cumsum(1) - 1).clamp_min(0), None, []
    for start, stop in [(0, 9), (9, 10), (10, 11)]:  # a first part, then single tokens
        options = {"attention_mask": LEFT[:, :stop], "position_ids": positions[:, start:stop]}
        out = ours(IDS[:, start:stop], past_key_values=past, use_cache=True, **options)
        past = out.past_key_values
        found.append(out.last_hidden_state[:, -1:])
    expected = eager(IDS, attention_mask=LEFT, position_ids=positions).last_hidden_state[:, -3:]
    torch.testing.assert_close(torch.cat(found, 1), expected, rtol=1e-4, atol=1e-5)


def test_a_static_cache_with_room_for_more_tokens(name):
    eager, ours = make("llama, grouped heads"), make("llama, grouped heads", name)
    cache = StaticCache(config=ours.config, max_cache_len=20)
    found = ours(IDS, past_key_values=cache, use_cache=True).last_hidden_state
    torch.testing.assert_close(found, eager(IDS).last_hidden_state, rtol=1e-4, atol=1e-5)


def test_generation(name):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**GROUPED, bos_token_id=1, eos_token_id=2)).eval()
    texts = {}
    for implementation in ("eager", name):
        model.set_attn_implementation(implementation)
        texts[implementation] = model.generate(IDS, attention_mask=LEFT, max_new_tokens=6, do_sample=False)
    assert torch.equal(texts["eager"], texts[name])


def test_from_pretrained_takes_the_name(name, tmp_path):
    model = make("vit")
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, attn_implementation=name).eval()
    assert loaded.config._attn_implementation == name
    torch.testing.assert_close(loaded(PIXELS).last_hidden_state, model(PIXELS).last_hidden_state, rtol=1e-4, atol=1e-5)


def test_compiled_models_are_one_graph(name):
    model = make("llama, grouped heads", name)
    expected = model(IDS).last_hidden_state
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(IDS).last_hidden_state, expected, rtol=1e-5, atol=1e-5)


# -- undoing ----------------------------------------------------------------------------------------------------------


def tables() -> list:
    return [dict(AttentionInterface._global_mapping), dict(AttentionMaskInterface._global_mapping)]


def test_use_is_undone_and_the_name_forgotten():
    before, model = tables(), make("clip", "sdpa")
    expected = model(IDS).last_hidden_state
    with ea.transformers.register("ours") as registration:
        registration.use(model)
        assert model.config._attn_implementation == "ours" and registration.active
        torch.testing.assert_close(model(IDS).last_hidden_state, expected, rtol=1e-4, atol=1e-5)
        registration.use(model)  # twice is once
    assert model.config._attn_implementation == "sdpa" and tables() == before and not registration.active
    assert torch.equal(model(IDS).last_hidden_state, expected)
    registration.remove()
    for again in (registration.__enter__, lambda: registration.use(model)):
        with pytest.raises(RuntimeError, match="was removed: call register again"):
            again()


def test_parts_with_a_configuration_of_their_own_are_restored():
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=dict(TEXT), vision_config=dict(PICTURE), projection_dim=16))
    model.set_attn_implementation({"text_config": "eager", "vision_config": "sdpa"})
    configs = [model.config, model.config.text_config, model.config.vision_config]
    before = [config._attn_implementation for config in configs]
    assert len(set(before)) == 2
    with ea.transformers.register() as registration:
        registration.use(model)
        assert {config._attn_implementation for config in configs} == {"entropy_attn"}
    assert [config._attn_implementation for config in configs] == before


def test_an_attention_that_was_chosen_later_is_kept():
    model = make("clip", "sdpa")
    with ea.transformers.register() as registration:
        registration.use(model)
        model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"


def test_a_model_that_keeps_a_removed_name_says_so():
    with ea.transformers.register() as registration:
        model = make("clip", registration.name)
    with pytest.raises(KeyError, match="entropy_attn"):
        model(IDS)


def test_two_names_do_not_interfere():
    model, other = make("vit", "sdpa"), make("vit", "sdpa")
    expected = model(PIXELS).last_hidden_state
    with ea.transformers.register("plain") as plain, ea.transformers.register("sharp", scale=Constant(3.0)) as sharp:
        plain.use(model)
        sharp.use(other)
        torch.testing.assert_close(model(PIXELS).last_hidden_state, expected, rtol=1e-4, atol=1e-5)
        assert (other(PIXELS).last_hidden_state - expected).abs().max() > 1e-2


# -- scale policies ---------------------------------------------------------------------------------------------------


def test_logn_at_a_larger_picture_is_eager_attention_with_that_scale():
    """A ViT trained on 25 patches, with its class token 26 keys, sees 81 patches."""
    large = torch.randn(1, 3, 36, 36, generator=torch.Generator().manual_seed(1))
    ours, eager = make("vit"), make("vit")
    factor = float(torch.tensor(82.0).log() / torch.tensor(26.0).log()) ** 0.5
    for module in eager.modules():
        if hasattr(module, "scaling"):
            module.scaling *= factor
    with ea.transformers.register(scale=LogN(train_tokens=26)) as registration:
        registration.use(ours)
        found = ours(large, interpolate_pos_encoding=True).last_hidden_state
        same = ours(PIXELS).last_hidden_state
    torch.testing.assert_close(
        found, eager(large, interpolate_pos_encoding=True).last_hidden_state, rtol=1e-4, atol=1e-5
    )
    plain = make("vit")
    torch.testing.assert_close(same, plain(PIXELS).last_hidden_state, rtol=1e-4, atol=1e-5)
    assert (found - plain(large, interpolate_pos_encoding=True).last_hidden_state).abs().max() > 1e-3


def test_what_a_policy_sees():
    seen = []

    def policy(info):
        seen.append(info)
        return None

    with ea.transformers.register(scale=policy) as registration:
        for model, inputs in (("llama, grouped heads", IDS), ("vit", PIXELS)):
            make(model, registration.name)(inputs)
    assert [info.layer for info in seen] == ["LlamaAttention.0", "LlamaAttention.1", "ViTAttention", "ViTAttention"]
    assert seen[0] == ea.CallInfo(
        layer="LlamaAttention.0", kind="self", seqlen_q=11, seqlen_k=11, num_heads=4, head_dim=12
    )
    assert (seen[2].seqlen_q, seen[2].seqlen_k) == (26, 26)


def test_a_model_with_its_own_scale_keeps_it_times_the_factor():
    """T5 does not scale at all."""
    plain, doubled, exact = make("t5, position bias"), make("t5, position bias"), make("t5, position bias")
    with torch.no_grad():
        for key, weight in doubled.named_parameters():
            if ".q." in key:
                weight.mul_(2.0)
    with (
        ea.transformers.register(scale=Constant(2.0)) as twice,
        ea.transformers.register("once", scale=Fixed()) as once,
    ):
        twice.use(plain)
        once.use(exact)
        torch.testing.assert_close(plain(IDS).last_hidden_state, doubled(IDS).last_hidden_state, rtol=1e-4, atol=1e-5)
        found = exact(IDS).last_hidden_state
    torch.testing.assert_close(found, make("t5, position bias")(IDS).last_hidden_state, rtol=1e-4, atol=1e-5)


def test_a_scale_for_each_head_is_learned():
    factors = torch.ones(4, requires_grad=True)
    with ea.transformers.register(scale=lambda info: factors * info.head_dim**-0.5) as registration:
        out = make("vit", registration.name)(PIXELS).last_hidden_state
        (gradient,) = torch.autograd.grad((out * torch.linspace(-1, 1, out.shape[-1])).sum(), factors)
    torch.testing.assert_close(out, make("vit")(PIXELS).last_hidden_state, rtol=1e-4, atol=1e-5)
    assert gradient.shape == (4,) and (gradient.abs() > 0).all()


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_dropout_in_training_is_refused(name):
    model = make("bert", name).train()
    with pytest.raises(Unroutable, match=r"BertSelfAttention: dropout=0\.1 is not part of this attention"):
        model(IDS)
    model.eval()(IDS)


@pytest.mark.parametrize(
    ("cls", "config", "what"),
    [
        (Gemma2Model, Gemma2Config(**GROUPED, head_dim=12), r"Gemma2Attention: softcap"),
        (GptOssModel, GptOssConfig(**GROUPED, head_dim=12, num_local_experts=2), r"GptOssAttention: s_aux"),
    ],
    ids=["softcap", "sinks"],
)
def test_what_a_model_needs_and_is_not_offered_is_refused(cls, config, what, name):
    model = cls(config).eval()
    model.set_attn_implementation(name)
    with pytest.raises(Unroutable, match=what):
        model(IDS)


@pytest.mark.parametrize("argument", ["cu_seq_lens_q", "seq_idx", "head_mask", "unheard_of"])
def test_an_argument_that_is_not_known_is_refused(argument, name):
    with pytest.raises(Unroutable, match=f"LlamaAttention: {argument} is not part"):
        make("llama, grouped heads", name)(IDS, **{argument: torch.tensor([0, 11])})


def test_use_refuses_a_model_whose_attention_is_another():
    model = GptOssModel(GptOssConfig(**GROUPED, head_dim=12, num_local_experts=2))
    before = model.config._attn_implementation
    with ea.transformers.register() as registration:
        with pytest.raises(Unroutable, match="GptOssModel: its attention is not that of torch"):
            registration.use(model)
        assert model.config._attn_implementation == before
        with pytest.raises(TypeError, match="model: expected a model of transformers, got Linear"):
            registration.use(torch.nn.Linear(2, 2))


def test_use_refuses_a_model_that_does_not_ask_the_interface(monkeypatch):
    model = make("clip", "sdpa")
    monkeypatch.setattr(CLIPTextModel, "_can_set_attn_implementation", classmethod(lambda cls: False))
    with ea.transformers.register() as registration:
        with pytest.raises(Unroutable, match="does not send its attention through AttentionInterface"):
            registration.use(model)
    assert model.config._attn_implementation == "sdpa"


def test_a_policy_is_not_guessed_to_be_for_self_attention():
    config = BartConfig(
        vocab_size=50, d_model=48, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32,
    )  # fmt: skip
    model = BartModel(config).eval()
    expected = model(IDS).last_hidden_state
    with ea.transformers.register("plain") as plain, ea.transformers.register("sharp", scale=Constant(2.0)) as sharp:
        plain.use(model)
        torch.testing.assert_close(model(IDS).last_hidden_state, expected, rtol=1e-4, atol=1e-5)
        sharp.use(model)
        with pytest.raises(Unroutable, match="BartAttention: a scale policy is for self-attention"):
            model(IDS)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("taken", ["sdpa", "eager", "flash_attention_2", "my_flash", "paged", "Mine", "a-b", "", "1st"])
def test_names_that_transformers_reads_are_refused(taken):
    before = tables()
    with pytest.raises(ValueError, match="name: expected an identifier"):
        ea.transformers.register(taken)
    assert tables() == before


def test_a_name_is_given_once():
    with ea.transformers.register() as registration:
        with pytest.raises(ValueError, match="name: expected a name that transformers does not have yet"):
            ea.transformers.register()
        assert AttentionInterface()["entropy_attn"] is not None and registration.active


def test_a_policy_that_needs_the_training_size_is_refused():
    before = tables()
    with pytest.raises(ValueError, match=r"scale=LogN\(.*give train_tokens="):
        ea.transformers.register(scale=LogN())
    assert tables() == before


@pytest.mark.parametrize(
    "policy",
    [
        *[TACA(), TargetEntropy(64), Steps(TargetEntropy(64), 0, 3), DyPE(train_tokens=64)],
        *[OfBranch(Fixed(0.1), "cond"), Schedule(Fixed(0.1), (5.0, 0.5)), Schedule(Fixed(0.1), (0, 1), "progress")],
    ],
)
def test_a_policy_that_follows_a_pipeline_is_refused(policy):
    before = tables()
    with pytest.raises(
        ValueError,
        match=r"scale=.*(TACA|TargetEntropy|DyPE|OfBranch|Schedule) is for the pipelines that `ea.apply` routes",
    ):
        ea.transformers.register(scale=policy)
    assert tables() == before
