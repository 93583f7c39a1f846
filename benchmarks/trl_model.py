"""The model and the text of ``benchmarks.trl``: a random Qwen3 of 33.6M parameters and random windows.

A word is a token, so that a context is exactly as long on both sides, whatever tokenises it.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

OPEN, CLOSE = "<think>", "</think>"
VOCAB_SIZE = 8192


def write_model(directory: Path, num_layers: int = 8) -> None:
    """Write model and tokenizer into ``directory``; fewer layers for a quick look at the benchmark."""
    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=num_layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)
    _tokenizer().save_pretrained(directory)


def write_windows(path: Path, num_windows: int, context_tokens: int) -> None:
    """Write a corpus of windows with the one marked position after ``context_tokens`` tokens."""
    lines = [
        json.dumps({"text": " ".join(words), "marks": [len(" ".join(words[:-1])) + 1]})
        for words in windows(num_windows, context_tokens)
    ]
    path.write_text("\n".join(lines) + "\n")


def windows(num_windows: int, context_tokens: int) -> list[list[str]]:
    """Words of random windows, each one longer than its context."""
    rng = random.Random(0)
    return [
        [f"w{rng.randrange(2, VOCAB_SIZE)}" for _ in range(context_tokens + 1)]
        for _ in range(num_windows)
    ]


def _tokenizer() -> Any:
    vocabulary = {OPEN: 0, CLOSE: 1} | {f"w{i}": i for i in range(2, VOCAB_SIZE)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=CLOSE,
        pad_token=CLOSE,
        additional_special_tokens=[OPEN, CLOSE],
    )
