"""Tiny captioner, question answerers and sentence encoder of random weights, as folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] a photo of the and two three red green blue yellow purple cyan circle square "
    "triangle cross circles squares triangles crosses is there what color how many ? . , yes no above below one"
).split()
SIDE = 32
SEED = 7


def tokenizer(folder: Path, length: int = 32) -> Any:
    """Words as tokens, in the form of BERT's tokenizer, written into the folder."""
    import transformers as tf

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    made = tf.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=length)
    made.save_pretrained(folder)
    return made


def _blip_config() -> Any:
    import transformers as tf

    text = {"vocab_size": len(WORDS), "hidden_size": 16, "encoder_hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64, "projection_dim": 8,
            "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": SIDE, "patch_size": 8}  # fmt: skip
    return tf.BlipConfig(text_config=text, vision_config=vision, projection_dim=8)


def _make_blip(folder: Path, kind: str) -> Path:
    import transformers as tf

    tokenizer(folder)
    torch.manual_seed(SEED)
    getattr(tf, kind)(_blip_config()).save_pretrained(folder)
    tf.BlipImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def make_captioner(folder: Path) -> Path:
    return _make_blip(folder, "BlipForConditionalGeneration")


def make_blip_vqa(folder: Path) -> Path:
    return _make_blip(folder, "BlipForQuestionAnswering")


def make_vilt_vqa(folder: Path) -> Path:
    import transformers as tf

    tokenizer(folder)
    torch.manual_seed(SEED)
    answers = ["yes", "no", "red", "dark blue"]
    config = tf.ViltConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, image_size=SIDE, patch_size=8, id2label=dict(enumerate(answers)),
        label2id={answer: index for index, answer in enumerate(answers)},
    )  # fmt: skip
    tf.ViltForQuestionAnswering(config).save_pretrained(folder)
    tf.ViltImageProcessor(size={"shortest_edge": SIDE}, size_divisor=8).save_pretrained(folder)
    return folder


def make_encoder(folder: Path) -> Path:
    import transformers as tf

    tokenizer(folder)
    torch.manual_seed(SEED)
    config = tf.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32,
    )  # fmt: skip
    tf.BertModel(config).save_pretrained(folder)
    return folder


NETWORKS = {
    "captioner": make_captioner,
    "blip": make_blip_vqa,
    "vilt": make_vilt_vqa,
    "encoder": make_encoder,
}


@pytest.fixture(scope="session")
def networks(tmp_path_factory):
    """{name: folder}, made once."""
    root = tmp_path_factory.mktemp("networks")
    return {name: make(root / name) for name, make in NETWORKS.items()}


@pytest.fixture
def drawn():
    """Three images."""
    made = [Image.new("RGB", (64, 48), color) for color in ("red", "navy", "white")]
    ImageDraw.Draw(made[0]).ellipse((10, 10, 30, 30), fill="yellow")
    return made
