"""Tiny random models of many architectures, as configurations of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from forethought.compute.model import (
    LanguageModel,
    apply_soft_caps,
    choose_forms,
    model_length,
)
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
_CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
_MAMBA: dict[str, Any] = {
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_expand": 2,
    "mamba_chunk_size": 8,
}  # fmt: skip
_LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "initializer_range": 0.1,  # their state amplifies rounding
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
    "gemma2": _SLIDING | _CAPS,
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

_LATENT: dict[str, Any] = _PLAIN | {
    "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4, "v_head_dim": 8,
}  # fmt: skip
_WINDOW: dict[str, Any] = {
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention"],
}
_LOCAL_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
_ROUTED: dict[str, Any] = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "first_k_dense_replace": 1, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
_SHARED_EXPERT: dict[str, Any] = _EXPERTS | {"shared_expert_intermediate_size": 16}
_FALCON: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 96,
}  # fmt: skip
_CHUNKED: dict[str, Any] = _DENSE | {
    "attention_chunk_size": 6, "layer_types": ["chunked_attention", "full_attention"],
    "no_rope_layers": [1, 0], "num_local_experts": 2, "interleave_moe_layer_step": 2,
    "intermediate_size_mlp": 48,
}  # fmt: skip
_LAYERWISE: dict[str, Any] = _DENSE | {
    "num_hidden_layers": 4, "layer_types": _WINDOW["layer_types"] * 2, "sliding_window": 6,
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": tiny.VOCAB_SIZE,
    "num_kv_shared_layers": 2,
}  # fmt: skip

DENSE: dict[str, dict[str, Any]] = {
    "llama/linear": _rope("linear", factor=2.0) | {"tie_word_embeddings": True},
    "llama/llama3": _rope(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=24
    ) | {"attention_bias": True, "mlp_bias": True},
    "llama/multi_query": _DENSE | {"num_key_value_heads": 1},
    "apertus": _PLAIN,
    "arcee": _DENSE,
    "biogpt": {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 96, "pad_token_id": 1,
    },
    "bitnet": _PLAIN,
    "codegen": _GPT | {"rotary_dim": 4},
    "cohere": _PLAIN | {"logit_scale": 1.5, "use_qk_norm": True},
    "ctrl": _GPT | {"dff": 48},
    "deepseek_v32": _LATENT | _ROUTED | {"index_topk": 8, "index_head_dim": 8, "index_n_heads": 16},
    "diffllama": _PLAIN,
    "doge": _PLAIN,
    "ernie4_5": _DENSE,
    "falcon": _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon/alibi": _FALCON | {
        "alibi": True, "bias": True, "multi_query": False, "parallel_attn": False,
    },
    "gemma": _DENSE,
    "glm": _DENSE | {"partial_rotary_factor": 0.5},
    "glm4": _DENSE,
    "gpt_bigcode": _GPT,
    "gpt_neox_japanese": {
        "hidden_size": 32, "intermediate_multiple_size": 2, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 96,
    },
    "gptj": _GPT | {"rotary_dim": 4},
    "granite": _PLAIN | {
        "logits_scaling": 0.5, "embedding_multiplier": 2.0, "residual_multiplier": 0.7,
        "attention_multiplier": 0.5,
    },
    "helium": _DENSE,
    "hunyuan_v1_dense": _DENSE,
    "hyperclovax": _PLAIN,
    "jais2": _PLAIN,
    "minicpm3": _LATENT | {"dim_model_base": 32, "scale_emb": 2},
    "ministral3": _rope(
        "yarn", factor=4.0, original_max_position_embeddings=24, llama_4_scaling_beta=0.1
    ),
    "nanochat": _PLAIN,
    "nemotron": _DENSE,
    "olmo": _PLAIN | {"clip_qkv": 1.5},
    "olmo2": _PLAIN,
    "openai-gpt": _GPT,
    "persimmon": _PLAIN | {"num_key_value_heads": 4},
    "phi": _PLAIN,
    "qwen2": _PLAIN,
    "qwen3": _DENSE,
    "seed_oss": _DENSE,
    "smollm3": _PLAIN | {"no_rope_layers": [1, 0]},
    "stablelm": _PLAIN | {"use_qkv_bias": True, "qk_layernorm": True},
    "xglm": {
        "d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4,
        "max_position_embeddings": 96, "pad_token_id": 1,
    },
    "youtu": _LATENT,
}  # fmt: skip
"""Further architectures, here and below, which the check of consistency leaves out for its time."""

WINDOWED: dict[str, dict[str, Any]] = {
    "afmoe": _DENSE | _WINDOW | _EXPERTS | {"num_dense_layers": 1, "global_attn_every_n_layers": 2},
    "cohere2": _DENSE | _WINDOW | {"logit_scale": 1.5},
    "cohere2_moe": _DENSE | _WINDOW | _EXPERTS | {"logit_scale": 1.0},
    "cwm": _DENSE | _WINDOW | {"bos_token_id": 0},
    "exaone4": _PLAIN | _WINDOW | {"sliding_window_pattern": 2},
    "exaone_moe": _PLAIN | _WINDOW | _ROUTED | {"num_experts": 4},
    "gemma3n_text": _LAYERWISE | {
        "laurel_rank": 4, "intermediate_size": [48] * 4,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
    },
    "gemma4_text": _LAYERWISE | {"global_head_dim": 8},
    "gpt_neo": {
        "hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 4, "window_size": 6,
        "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 96,
    },
    "granite_swa": _DENSE | _WINDOW,
    "llama4_text": _CHUNKED,
    "llama4_text/untuned": _CHUNKED | {"attn_temperature_tuning": False},
    "mimo_v2_flash": _DENSE | _WINDOW | _ROUTED | {"v_head_dim": 8},
    "ministral": _DENSE | _WINDOW,
    "mixtral/window": _DENSE | _LOCAL_EXPERTS | {"sliding_window": 6},
    "olmo3": _PLAIN | _WINDOW,
    "phi3/window": _PLAIN | {"sliding_window": 6},
    "phimoe": _PLAIN | _LOCAL_EXPERTS | {"sliding_window": 6},
    "qwen2/window": _PLAIN | {
        "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1,
    },
    "smollm3/window": _PLAIN | _WINDOW | {"use_sliding_window": True, "no_rope_layers": [1, 0]},
    "starcoder2": _PLAIN | {"sliding_window": 6},
    "vaultgemma": _DENSE | _WINDOW | _CAPS,
}  # fmt: skip
"""With windows or chunks in all layers or some; with layers that share keys and values."""

EXPERTS: dict[str, dict[str, Any]] = {
    "dbrx": {
        "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 96,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 2.0, "rope_theta": 10_000.0},
        "ffn_config": {
            "ffn_hidden_size": 32, "hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2,
        },
    },
    "deepseek_v2": _LATENT | _ROUTED,
    "dots1": _PLAIN | _ROUTED | {"layer_types": ["full_attention"] * 2},
    "ernie4_5_moe": _PLAIN | {
        "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16, "moe_layer_start_index": 0,
        "moe_num_shared_experts": 1,
    },
    "flex_olmo": _PLAIN | {"num_experts": 4, "num_experts_per_tok": 2},
    "glm4_moe": _DENSE | _ROUTED,
    "glm4_moe_lite": _LATENT | _ROUTED,
    "granitemoe": _PLAIN | _LOCAL_EXPERTS,
    "granitemoeshared": _PLAIN | _LOCAL_EXPERTS | {"shared_intermediate_size": 16},
    "hunyuan_v1_moe": _DENSE | {"num_experts": 4, "moe_topk": [2, 2], "num_shared_expert": [1, 1]},
    "hy_v3": _DENSE | _ROUTED,
    "jetmoe": _LOCAL_EXPERTS | {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_key_value_heads": 2,
        "kv_channels": 8, "max_position_embeddings": 96,
    },
    "laguna": _DENSE | _EXPERTS,
    "minimax_m2": _DENSE | _LOCAL_EXPERTS | {"rotary_dim": 4},
    "olmoe": _PLAIN | {"num_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": _PLAIN | _SHARED_EXPERT | {"decoder_sparse_step": 1},
    "solar_open": _DENSE | _ROUTED,
}  # fmt: skip
"""Mixtures of experts with full attention."""

MIXED: dict[str, dict[str, Any]] = {
    "falcon_mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "lfm2_moe": _PLAIN | _EXPERTS | {
        "layer_types": ["conv", "full_attention"], "num_dense_layers": 1,
    },
    "olmo_hybrid": _PLAIN | _LINEAR,
    "qwen3_5_moe_text": _DENSE | _LINEAR | _SHARED_EXPERT,
    "qwen3_5_text": _DENSE | _LINEAR,
    "zamba": _PLAIN | {
        "num_hidden_layers": 3, "num_key_value_heads": 4, "attention_head_dim": 16, "n_mamba_heads": 2,
        "layers_block_type": ["mamba", "hybrid", "hybrid"],
        "mamba_d_state": 8, "use_mamba_kernels": False,
    },
    "zamba2": _PLAIN | {
        "num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "hybrid_layer_ids": [1, 3], "num_key_value_heads": 4, "num_mem_blocks": 1,
        "attention_hidden_size": 64, "attention_head_dim": 16, "mamba_d_state": 8, "n_mamba_heads": 8,
        "mamba_headdim": 8, "mamba_ngroups": 1, "chunk_size": 8, "use_mamba_kernels": False,
        "initializer_range": 0.1,
    },
}  # fmt: skip
"""With recurrent layers or convolutions."""

EVERY = (
    ATTENTION | HYBRIDS | BY_RELEASE | UNSAMPLED | UNPADDED | LONGROPE | DENSE | WINDOWED | EXPERTS | MIXED
)  # fmt: skip


def build(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A random model in evaluation mode; the architecture is what precedes a slash."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name.partition("/")[0], **_COMMON | EVERY[name])
    model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    apply_soft_caps(model)
    _draw_vectors(model)
    return model.to(dtype).eval()


def prepared(name: str) -> LanguageModel:
    """A random model in float32, prepared as ``load_language_model`` prepares what it reads."""
    model = build(name)
    length = model_length(model.config)
    return LanguageModel(model, None, length, choose_forms(model, range(1, 200), length))


@torch.no_grad()
def _draw_vectors(model: Any) -> None:
    """Biases and scales that begin as zeros or ones show nothing that is done wrong with them."""
    for parameter in model.parameters():
        if parameter.dim() == 1 and len(parameter) > 1 and (parameter == parameter[0]).all():
            parameter += 0.2 * torch.randn_like(parameter)


def build_directory(directory: Path, name: str) -> Path:
    """A model and the tiny tokenizer, as ``save_pretrained`` writes them; returns the directory."""
    build(name).save_pretrained(directory)
    tiny.build_tokenizer().save_pretrained(directory)
    return directory
