"""How the base model that ships with the demo was made: ``forethought demo --rebuild-base``.

Random weights and a corpus are written to DIR/base and trained by the learner with next-token loss. 40 %
of the documents are worked, half of them correctly, so that sampled thoughts are correct often enough to
be reinforced. Some thoughts are idle and placed elsewhere, so that thinking does no harm where it does
not help.
"""

from __future__ import annotations

from pathlib import Path

from forethought.lab.demo.corpus import Mixture, build_tokenizer, write_corpus

NUM_DOCUMENTS = 180_000
STEPS = 1400


def write_initial_model(directory: Path, seed: int) -> None:
    """Two layers, width 64, 120,512 parameters: too shallow to track six steps in one pass.

    Heads are 32 wide, the narrowest that CPU attention kernels support; the rotary base is small because
    sequences are short.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from forethought.run.files import grant_usual_mode

    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=32,
            max_position_embeddings=128,
            initializer_range=0.1,
            rope_parameters={"rope_type": "default", "rope_theta": 100.0},
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    grant_usual_mode(directory)


def prepare(directory: Path, seed: int = 0) -> list[str]:
    """Write corpus and initial weights; returns the overrides of the run that trains the base."""
    write_corpus(directory / "corpus", num_documents=NUM_DOCUMENTS, seed=seed, mixture=Mixture())
    write_initial_model(directory / "init", seed)
    return [
        "run.name=demo-base",
        f"run.directory={directory / 'run'}",
        f"run.seed={seed}",
        f"model.path={directory / 'init'}",
        f"corpus.path={directory / 'corpus' / 'train.jsonl'}",
        "corpus.window_tokens=32",
        "objective.name=ntp",
        f"learner.steps={STEPS}",
        "learner.batch_tasks=128",
        "learner.learning_rate=5e-3",
        "learner.schedule=warmup_stable_decay",
        "learner.warmup_steps=100",
        "learner.beta2=0.98",
        "learner.weight_decay=0.01",
        f"checkpoint.every_steps={STEPS}",
    ]
