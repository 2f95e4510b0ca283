"""The parts of the second embedded pipeline: a Lumina 2 pipeline, small enough to train on a CPU.

Why Lumina 2: its pipeline cuts each caption after its last word (no attention to padding), guides with a second pass
over the empty caption, and its joint-attention blocks have rotary positions and normalized queries and keys. Its
pipeline requires eight pixels per latent, so the autoencoder of the embedded UNet, with four, cannot be used.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import Gemma2Config, Gemma2Model, PreTrainedTokenizerFast

from entropy_attn.shapes.scenes import COLOURS, NUMBERS, RELATIONS, SHAPES

BOS, PAD, UNKNOWN = "<bos>", "<pad>", "<unk>"
IMAGE_SIZE = 64
LATENT_SIZE = 8  # eight pixels per latent, one latent per token: 64 image tokens at the training size
LATENT_CHANNELS = 8
WORD_WIDTH = 64
HEAD_DIM = 32
# Rotary dims of a head: position in the caption, row, column. n dims have the frequencies 10000^(-2 i / n) radians a
# token, so a wider head has more of them between 1 (a period of 6.3 tokens) and the size of a canvas.
AXES = {32: (8, 12, 12), 64: (8, 28, 28), 96: (16, 40, 40)}


def words() -> list[str]:
    """All words of the captions, and the comma."""
    plain = {"and", ",", *NUMBERS.values(), *COLOURS, *SHAPES, *(f"{s}s" for s in SHAPES), "crosses"} - {"crosss"}
    return sorted(plain | {word for relation in RELATIONS for word in relation.split()})


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word after `<bos>`; drops the system prompt that Lumina 2's pipeline puts before a caption."""
    vocabulary = {word: i for i, word in enumerate([PAD, BOS, UNKNOWN, *words()])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    core.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(r"^[\s\S]*<Prompt Start>"), ""), normalizers.Lowercase()]
    )
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=BOS, pad_token=PAD, unk_token=UNKNOWN, model_max_length=256,
        padding_side="right",
    )  # fmt: skip


def text_encoder(vocabulary: int) -> Gemma2Model:
    """A table of fixed orthogonal word vectors, as a Gemma 2 of one layer.

    The pipeline reads the hidden states before the last layer, which are the word vectors here. The caption projection
    and context refiner of the transformer learn what the words mean.
    """
    config = Gemma2Config(
        vocab_size=vocabulary, hidden_size=WORD_WIDTH, intermediate_size=WORD_WIDTH, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=WORD_WIDTH // 2, max_position_embeddings=256,
        pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    model = Gemma2Model(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()  # of the layer that is not used: every export has the same bytes
    generator = torch.Generator().manual_seed(0)
    rows = torch.linalg.qr(torch.randn(WORD_WIDTH, WORD_WIDTH, generator=generator)).Q[:vocabulary]
    model.embed_tokens.weight.copy_(rows)
    return model


def vae() -> AutoencoderKL:
    """Pixels (3, H, W) to latents (8, H / 8, W / 8); only convolutions, so there is no attention to scale."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64), layers_per_block=1, latent_channels=LATENT_CHANNELS, norm_num_groups=8,
        sample_size=IMAGE_SIZE, mid_block_add_attention=False, shift_factor=0.0,
    )  # fmt: skip


def transformer(
    width: int = 192, layers: int = 6, refiners: int = 1, feed_forward: float = 0.5, head_dim: int = HEAD_DIM
):
    """Joint attention over words and image tokens, with `width // head_dim` heads.

    Raises:
        ValueError: `head_dim` is not in `AXES`, or `width` is no multiple of it.
    """
    if head_dim not in AXES or width % head_dim:
        raise ValueError(f"head_dim: expected one of {', '.join(map(str, AXES))} that divides {width}, got {head_dim}")
    model = Lumina2Transformer2DModel(
        sample_size=LATENT_SIZE, patch_size=1, in_channels=LATENT_CHANNELS, hidden_size=width, num_layers=layers,
        num_refiner_layers=refiners, num_attention_heads=width // head_dim, num_kv_heads=width // head_dim,
        multiple_of=32, ffn_dim_multiplier=feed_forward, axes_dim_rope=AXES[head_dim], axes_lens=(256, 256, 256),
        cap_feat_dim=WORD_WIDTH,
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        # Every block starts as the identity, and the prediction as zero.
        if ".norm1.linear" in name or "norm_out.linear" in name:
            torch.nn.init.zeros_(parameter)
    return model


def scheduler(shift: float = 1.0) -> FlowMatchEulerDiscreteScheduler:
    """Rectified flow from noise to image."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)


def pipeline(autoencoder, denoiser, shift: float = 1.0) -> Lumina2Pipeline:
    """The parts as an ordinary pipeline."""
    tok = tokenizer()
    pipe = Lumina2Pipeline(
        transformer=denoiser, scheduler=scheduler(shift), vae=autoencoder, text_encoder=text_encoder(len(tok)),
        tokenizer=tok,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe
