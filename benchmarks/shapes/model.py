"""The parts of the embedded pipeline before training: tokenizer, text encoder, VAE, UNet, scheduler."""

from __future__ import annotations

import tempfile
from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from entropy_attn.shapes.scenes import COLOURS, KINDS, RELATIONS, SHAPES

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
CONTEXT = 77
WIDTH = 128
IMAGE_SIZE = 64
LATENT_SIZE = 16


def tokenizer() -> CLIPTokenizer:
    """A byte-level CLIP tokenizer in which each word of the captions is one token."""
    words = {"a", "and", "two", "three", ",", *COLOURS, *SHAPES, *(f"{s}s" for s in SHAPES), "crosses"}
    words |= {word for relation in RELATIONS for word in relation.split()} | {str(k.colour) for k in KINDS}
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bpe.train_from_iterator(
        sorted(words) * 10,
        trainers.BpeTrainer(vocab_size=4096, end_of_word_suffix="</w>", show_progress=False, min_frequency=2),
    )
    with tempfile.TemporaryDirectory() as folder:
        bpe.model.save(folder)
        lines = Path(folder, "merges.txt").read_text().splitlines()
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    # As in CLIP: bytes, bytes at the end of a word, merges, the two special tokens, in this order.
    names = dict.fromkeys([*letters, *(f"{c}</w>" for c in letters), *("".join(pair) for pair in merges), BOS, EOS])
    return CLIPTokenizer(
        vocab={name: i for i, name in enumerate(names)}, merges=merges, bos_token=BOS, eos_token=EOS,
        pad_token=EOS, unk_token=EOS, model_max_length=CONTEXT,
    )  # fmt: skip


def text_encoder(tok: CLIPTokenizer) -> CLIPTextModel:
    """A three-layer causal CLIP text model."""
    config = CLIPTextConfig(
        vocab_size=len(tok), hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=CONTEXT, hidden_act="quick_gelu",
        bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id,
    )  # fmt: skip
    return CLIPTextModel(config)


def vae() -> AutoencoderKL:
    """64 x 64 x 3 pixels to 16 x 16 x 4 latents."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64), layers_per_block=1, latent_channels=4, norm_num_groups=8,
        sample_size=IMAGE_SIZE,
    )  # fmt: skip


def unet() -> UNet2DConditionModel:
    """Self- and cross-attention on 16 x 16, 8 x 8 and, in the middle, 4 x 4 tokens; four heads each."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE, in_channels=4, out_channels=4, block_out_channels=(64, 128, 128),
        layers_per_block=1, cross_attention_dim=WIDTH, attention_head_dim=4, norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def scheduler() -> DDIMScheduler:
    """v-prediction with zero terminal signal-to-noise ratio (arXiv 2305.08891)."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True,
        steps_offset=1,  # unused by trailing timesteps, expected by StableDiffusionPipeline
    )  # fmt: skip


def pipeline(parts: dict) -> StableDiffusionPipeline:
    """The parts as a Stable Diffusion pipeline without a safety checker."""
    pipe = StableDiffusionPipeline(
        **parts, scheduler=scheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
