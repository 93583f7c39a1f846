"""Tokenizers built like those of known families, small, each with a model of its architecture.

qwen3    byte-level BPE, no BOS, think tokens that are not special, a chat template without system message
llama3   byte-level BPE, BOS by post-processor and written by the chat template, no think tokens
gemma    BPE over pieces with "▁" for a space and bytes for the rest, BOS likewise, no think tokens
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoConfig, AutoModelForCausalLM
from transformers import PreTrainedTokenizerFast as FastTokenizer

Family = Literal["qwen3", "llama3", "gemma"]
FAMILIES: tuple[Family, ...] = ("qwen3", "llama3", "gemma")

TEXTS = tuple(
    f"Question: what is {a} plus {b}?\n\nAnswer: {a} plus {b} is {a + b}.\n\nSo the answer is {a + b}."
    for a in range(4, 24)
    for b in range(3, 9)
)
"""Text with ".\\n\\n" before a word, which byte-level BPE merges."""

_LENGTH_TOKENS = 512
_NUM_ORDINARY = 420
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_TURNS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('no system role') }}{% endif %}<start_of_turn>{{ m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def build_tokenizer(family: Family) -> Any:
    """The tokenizer of a family; the same every time."""
    return {"qwen3": _qwen3, "llama3": _llama3, "gemma": _gemma}[family]()


def build_directory(directory: Path, family: Family, head_dim: int = 16) -> Path:
    """A random model and its tokenizer as ``save_pretrained`` writes them; returns the directory."""
    tokenizer = build_tokenizer(family)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama" if family == "llama3" else family,
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=head_dim, initializer_range=0.2,
        max_position_embeddings=_LENGTH_TOKENS, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.eval().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _qwen3() -> Any:
    core = _byte_level()
    core.normalizer = normalizers.NFC()
    core.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    core.add_tokens([AddedToken(name, normalized=False) for name in ("<think>", "</think>")])
    made = FastTokenizer(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made.chat_template = _CHATML
    return made


def _llama3() -> Any:
    core = _byte_level()
    bos = "<|begin_of_text|>"
    headers = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    core.add_special_tokens([bos, "<|end_of_text|>", *headers])
    template = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos} $B:1",
        special_tokens=[(bos, core.token_to_id(bos))],
    )
    core.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    made = FastTokenizer(tokenizer_object=core, bos_token=bos, eos_token="<|eot_id|>")
    made.chat_template = _HEADERS
    return made


def _gemma() -> Any:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<unused0>"]
    vocab, merges = _pieces()
    names = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *vocab]
    core = Tokenizer(
        models.BPE(
            {name: index for index, name in enumerate(names)}, merges,
            unk_token="<unk>", fuse_unk=True, byte_fallback=True,
        )
    )  # fmt: skip
    core.normalizer = normalizers.Replace(" ", "▁")
    core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    core.add_special_tokens(special)
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B:1", special_tokens=[("<bos>", 2)]
    )
    made = FastTokenizer(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        pad_token="<pad>",
    )  # fmt: skip
    made.chat_template = _TURNS
    return made


def _byte_level() -> Tokenizer:
    core = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_SPLIT), "isolated")
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([split, bytewise])
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=_NUM_ORDINARY, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(TEXTS, trainer)
    return core


def _pieces() -> tuple[list[str], list[tuple[str, str]]]:
    """Pieces of text with "▁" for a space, and their merges; what they lack is written in bytes."""
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=160, show_progress=False, max_token_length=12)
    core.train_from_iterator(TEXTS, trainer)
    vocab = sorted(core.get_vocab(), key=core.get_vocab().__getitem__)
    merges = json.loads(core.to_str())["model"]["merges"]
    return vocab, [tuple(pair) for pair in merges]
