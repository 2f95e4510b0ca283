"""The trained sentence encoder all-MiniLM-L6-v2: six BERT layers with 12 heads, bidirectional attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertModel, PreTrainedTokenizerFast

from benchmarks.independent.captions import Caption
from benchmarks.independent.download import MINILM, files_of
from entropy_attn.integrations.transformers import text_self_attention_maps
from entropy_attn.prompts import Text

MARKS = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
LENGTH = 24  # tokens of a padded caption
BATCH = 50


def load(folder: Path) -> tuple[BertModel, PreTrainedTokenizerFast]:
    """Encoder and tokenizer.

    Raises:
        MissingWeights: the files are not in `folder`.
    """
    files = files_of(MINILM, folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(files["tokenizer.json"]), **MARKS)
    encoder = BertModel.from_pretrained(files["config.json"].parent, local_files_only=True)
    return encoder.eval(), tokenizer


def encoded(encoder: BertModel, tokenizer: Any, captions: list[Caption]) -> tuple[list[Text], Tensor, Tensor]:
    """Words, token ids (B, s) and attention (L, B, s, s) of the captions, means over heads.

    Raises:
        ValueError: the tokenizer does not split a caption into its words.
    """
    texts = [Text(caption.text, tokenizer, LENGTH) for caption in captions]
    for text, caption in zip(texts, captions, strict=True):
        if len(text.words) != len(caption.words):
            raise ValueError(f"captions: expected the {len(caption.words)} words of {caption.words}, got {text.words}")
    ids = torch.tensor([text.ids for text in texts])
    maps = []
    with torch.no_grad():
        for batch in ids.split(BATCH):
            _, found = text_self_attention_maps(encoder, batch, attention_mask=(batch != tokenizer.pad_token_id).long())
            maps.append(found)
    return texts, ids, torch.cat(maps, 1)
