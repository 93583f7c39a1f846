"""Tiny random models with a byte-level tokenizer, written to a directory in milliseconds.

The weights are drawn wide (``initializer_range`` 0.2), so that log-probs spread over nats and a
mistake shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as FastTokenizer

from forethought.compute.served_model import ServedModel
from forethought.special_tokens import choose_bos
from forethought.types import WeightManifest

THINK_OPEN, THINK_CLOSE, EOS = "<think>", "</think>", "<eos>"
NUM_BYTES = 256
EOS_ID, OPEN_ID, CLOSE_ID = NUM_BYTES, NUM_BYTES + 1, NUM_BYTES + 2
BOS_ID = EOS_ID  # of directories that begin_with_bos
VOCAB_SIZE = NUM_BYTES + 3
MAX_LENGTH_TOKENS = 96

Kind = Literal["llama", "gpt2"]

torch.set_num_threads(1)  # tiny tensors: a second thread only waits for the first


def build_tokenizer() -> Any:
    """One token per byte, then ``<eos>``, ``<think>`` and ``</think>``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = FastTokenizer(
        tokenizer_object=core,
        eos_token=EOS,
        additional_special_tokens=[THINK_OPEN, THINK_CLOSE],
    )
    assert tokenizer.convert_tokens_to_ids([EOS, THINK_OPEN, THINK_CLOSE]) == [
        EOS_ID,
        OPEN_ID,
        CLOSE_ID,
    ]
    return tokenizer


def build_model(kind: Kind = "llama", seed: int = 0, head_dim: int = 8) -> Any:
    """A two-layer random model in evaluation mode, float32. vLLM on CPUs needs ``head_dim`` 32."""
    torch.manual_seed(seed)
    if kind == "llama":
        model: Any = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCAB_SIZE,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=head_dim,
                max_position_embeddings=MAX_LENGTH_TOKENS,
                initializer_range=0.2,
                bos_token_id=None,
                eos_token_id=EOS_ID,
            )
        )
    else:
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCAB_SIZE,
                n_embd=32,
                n_layer=2,
                n_head=32 // head_dim,
                n_positions=MAX_LENGTH_TOKENS,
                initializer_range=0.2,
                bos_token_id=EOS_ID,
                eos_token_id=EOS_ID,
            )
        )
    return model.eval()


def build_model_directory(
    directory: Path, kind: Kind = "llama", seed: int = 0, head_dim: int = 8
) -> Path:
    """Write a model and its tokenizer as ``save_pretrained`` does; returns the directory."""
    build_model(kind, seed, head_dim).save_pretrained(directory)
    build_tokenizer().save_pretrained(directory)
    return directory


def corrupt(directory: Path) -> Path:
    """Make one weight of a saved model NaN; returns the directory."""
    file = directory / "model.safetensors"
    weights = load_file(file)
    weights[min(weights)].view(-1)[7] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    return directory


def begin_with_bos(directory: Path) -> Path:
    """Make a directory's tokenizer put BOS, here ``<eos>``, before every text."""
    tokenizer = build_tokenizer()
    tokenizer.bos_token = EOS
    choose_bos(tokenizer, "always")
    tokenizer.save_pretrained(directory)
    return directory


def manifest(model: str, epoch: int = 1, version: int = 0, files: str = "files") -> WeightManifest:
    """A manifest with the given values; its hashes are placeholder strings."""
    return WeightManifest(model, epoch, version, f"{model}-{version}", files, "float32", 1)


def serve(directory: Path, model: str, epoch: int = 1, version: int = 0) -> ServedModel:
    """A served model with the weights of a directory."""
    served = ServedModel(model, "cpu")
    served.load(directory, manifest(model, epoch, version))
    return served
