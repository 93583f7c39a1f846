"""What ``benchmarks.gpu`` computes: random models in the shape of real ones, and thoughts in documents."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from forethought.compute.logprob import Continuation
from forethought.compute.packing import Row
from trainer.batch.thought_tree import Branch, ThoughtTree

MAX_TOKENS = 4096

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "toy": ("qwen3", {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    }),
    "smollm2-135m": ("llama", {
        "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
    }),
    "qwen3-1.7b": ("qwen3", {
        "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
    }),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is computed, and in forward passes of how many tokens.

    Example:
        ``Sizes(num_documents=32, document=1024, thought=64, score_tokens=32_768, learn_tokens=8192)``
    """

    num_documents: int
    document: int
    thought: int
    score_tokens: int
    learn_tokens: int
    num_positions: int = 4
    group: int = 8
    target: int = 8


SIZES = {
    "toy": Sizes(2, 96, 8, 512, 512),
    "smollm2-135m": Sizes(64, 1024, 64, 65_536, 32_768),
    "qwen3-1.7b": Sizes(16, 1024, 64, 32_768, 8192),
}


@dataclass(frozen=True, slots=True)
class Thought:
    """A thought after the first ``index`` tokens of a document, and the target that follows it.

    Example:
        ``Thought(document, 512, thought_ids)``
    """

    document: tuple[int, ...]
    index: int
    token_ids: tuple[int, ...]
    target_ids: tuple[int, ...]

    @property
    def query(self) -> Continuation:
        """The target, to be scored after document and thought."""
        return Continuation(self.document[: self.index] + self.token_ids, self.target_ids)

    @property
    def scored(self) -> Row:
        """The row that scoring computes."""
        return Row(self.query.prefix_ids + self.target_ids, len(self.target_ids))

    @property
    def learned(self) -> Row:
        """The row that learning computes."""
        return Row(self.query.prefix_ids, len(self.token_ids))


def build_model(name: str, dtype: torch.dtype, device: str) -> Any:
    """A random model in evaluation mode, made on the device."""
    kind, options = MODELS[name]
    config = AutoConfig.for_model(kind, max_position_embeddings=MAX_TOKENS, **options)
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval()


def draw_thoughts(model: Any, sizes: Sizes) -> list[Thought]:
    """Random tokens: G thoughts at each of K positions, evenly over the later three quarters."""
    draw = random.Random(0)

    def tokens(num: int) -> tuple[int, ...]:
        return tuple(draw.choices(range(model.config.vocab_size), k=num))

    step = 3 * sizes.document // 4 // sizes.num_positions
    indices = [sizes.document - k * step - sizes.target for k in range(sizes.num_positions)]
    documents = [tokens(sizes.document) for _ in range(sizes.num_documents)]
    return [
        Thought(document, index, tokens(sizes.thought), document[index : index + sizes.target])
        for document in documents
        for index in indices
        for _ in range(sizes.group)
    ]


def learned_trees(thoughts: list[Thought], vocabulary: int) -> list[ThoughtTree]:
    """The thoughts as the learner gets them, with weights and advantages that make a gradient."""

    def branch(i: int, thought: Thought) -> Branch:
        num = len(thought.token_ids)
        weights_T = (1 / (num * len(thoughts)),) * num
        behaviour_T = (-math.log(vocabulary),) * num
        advantages_T = (math.sin(1 + i),) * num
        return Branch(thought.index, thought.token_ids, weights_T, advantages_T, behaviour_T, 1.0)

    by_document: dict[tuple[int, ...], list[Branch]] = {}
    for i, thought in enumerate(thoughts):
        by_document.setdefault(thought.document, []).append(branch(i, thought))
    return [ThoughtTree((), ids, branches=tuple(of)) for ids, of in by_document.items()]
