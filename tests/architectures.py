"""Tiny random models of many architectures, as configurations of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests import tiny

BOUNDARY_TOKENS = 24
"""Where the rotary frequencies of the longrope models change."""

_COMMON: dict[str, Any] = {
    "vocab_size": tiny.VOCAB_SIZE, "pad_token_id": None, "bos_token_id": None,
    "eos_token_id": tiny.EOS_ID, "initializer_range": 0.2,
}  # fmt: skip
_DENSE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": tiny.MAX_LENGTH_TOKENS,
}  # fmt: skip
_PLAIN = {name: value for name, value in _DENSE.items() if name != "head_dim"}
_GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96}
_SLIDING: dict[str, Any] = _DENSE | {"sliding_window": 8}
_MAMBA: dict[str, Any] = {
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_expand": 2,
    "mamba_chunk_size": 8,
}  # fmt: skip
_LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
_LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0] * 4,
    "long_factor": [1.0, 3.0, 9.0, 30.0], "original_max_position_embeddings": BOUNDARY_TOKENS,
}  # fmt: skip


def _rope(kind: str, **given: float) -> dict[str, Any]:
    return _DENSE | {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **given}}


ATTENTION: dict[str, dict[str, Any]] = {
    "llama": _DENSE,
    "llama/dynamic": _rope("dynamic", factor=4.0),
    "llama/yarn": _rope("yarn", factor=4.0, original_max_position_embeddings=24),
    "mistral": _SLIDING,
    "gemma2": _SLIDING,
    "gemma3_text": _SLIDING | {"num_hidden_layers": 6},
    "gpt2": _GPT,
    "gpt_neox": _PLAIN,
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 96},
    "opt": {
        "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 96, "word_embed_proj_dim": 32, "init_std": 0.2, "pad_token_id": 1,
    },
    "mixtral": _DENSE | {"num_local_experts": 4},
    "qwen3_moe": _DENSE | _EXPERTS | {"decoder_sparse_step": 1},
    "gpt_oss": _SLIDING | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": _PLAIN | {
        "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2,
        "topk_group": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1, "q_lora_rank": 8,
        "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
    },
}  # fmt: skip
"""Attention only: every pass agrees."""

HYBRIDS: dict[str, dict[str, Any]] = {
    "bamba": _PLAIN | _MAMBA | {"attn_layer_indices": [1]},
    "falcon_h1": _PLAIN | _MAMBA | {"mamba_d_ssm": 64},
    "granitemoehybrid": _PLAIN | _MAMBA | {
        "layer_types": ["mamba", "attention"], "num_local_experts": 2, "num_experts_per_tok": 1,
        "shared_intermediate_size": 16,
    },
    "jamba": _PLAIN | {
        "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2,
        "num_experts_per_tok": 1, "mamba_d_state": 8, "use_mamba_kernels": False,
    },
    "lfm2": _PLAIN | {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "nemotron_h": {k: v for k, v in _DENSE.items() if k != "num_hidden_layers"} | {
        "layers_block_type": ["mamba", "attention", "mlp", "mamba"], "ssm_state_size": 8,
        "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 2, "chunk_size": 8,
        "use_mamba_kernels": False,
    },
    "qwen3_next": _DENSE | _LINEAR | _EXPERTS | {"shared_expert_intermediate_size": 16},
}  # fmt: skip
"""With recurrent layers that mask padding and keep their state in the cache: every pass agrees too."""

BY_RELEASE: dict[str, dict[str, Any]] = {
    "mamba2": {
        "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 8, "head_dim": 8,
        "n_groups": 1, "chunk_size": 8,
    },
}  # fmt: skip
"""Decoding agrees with transformers 5.24 and differs with 5.19."""

UNSAMPLED: dict[str, dict[str, Any]] = {
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "minimax": _DENSE | {
        "layer_types": ["linear_attention", "full_attention"], "num_local_experts": 2,
        "num_experts_per_tok": 1, "block_size": 8,
    },
}  # fmt: skip
"""Decoding with a ``DynamicCache`` differs, or fails."""

UNPADDED: dict[str, dict[str, Any]] = {
    "recurrent_gemma": {
        "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
        "lru_width": 32, "attention_window_size": 16, "w_init_variance_scale": 1.0,
    },
    "rwkv": {
        "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32,
        "intermediate_size": 48, "context_length": 96,
    },
    "xlstm": {
        "hidden_size": 32, "embedding_dim": 32, "num_hidden_layers": 2, "num_blocks": 2,
        "num_heads": 2, "chunk_size": 8, "autocast_kernel_dtype": "float32",
    },
}  # fmt: skip
"""Recurrent layers that read padding; they cannot be sampled either."""

LONGROPE: dict[str, dict[str, Any]] = {
    "phi3": _PLAIN | {
        "rope_parameters": _LONGROPE, "original_max_position_embeddings": BOUNDARY_TOKENS
    },
    "llama/longrope": _DENSE | {"rope_parameters": _LONGROPE},
}  # fmt: skip
"""Rotary frequencies depend on the longest row of a batch."""

EVERY = ATTENTION | HYBRIDS | BY_RELEASE | UNSAMPLED | UNPADDED | LONGROPE


def build(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A random model in evaluation mode; the architecture is what precedes a slash."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name.partition("/")[0], **_COMMON | EVERY[name])
    model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return model.to(dtype).eval()


def build_directory(directory: Path, name: str) -> Path:
    """A model and the tiny tokenizer, as ``save_pretrained`` writes them; returns the directory."""
    build(name).save_pretrained(directory)
    tiny.build_tokenizer().save_pretrained(directory)
    return directory
