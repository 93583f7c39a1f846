"""The peer of ``benchmarks.trl``: RLP on TRL's GRPOTrainer, in a process of its own.

"stock" is the trainer as it is, and a reward function as one would write it: each thought a row with its
own context, micro-batches of the trainer's size, logits where needed, the no-think pass once a context.

"tuned" differs in two places. Off Triton devices, the trainer projects every position of a row to the
vocabulary and masks the contexts afterwards; tuned projects the thoughts alone. And its reward function
prefills a context once for its G thoughts.

In both, ``loss_type`` and ``scale_rewards`` are those of RLP, gradient checkpointing and bfloat16, which
the trainer has on by default, are off, and the moving average is updated after each step. Its model is
copied before the trainer is built: the trainer replaces ``forward`` on the instance, and that of a later
copy would still run the original's layers.
"""

from __future__ import annotations

import copy
import json
import os
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import entropy_from_logits, selective_log_softmax

from benchmarks.trl_model import CLOSE, OPEN, windows
from benchmarks.whole_run import peak_bytes

DECAY, LEARNING_RATE = 0.999, 1e-4


class TunedTrainer(GRPOTrainer):  # type: ignore[misc]
    """Computes logits of the completion tokens alone."""

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        output = model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            logits_to_keep=logits_to_keep + 1,
            use_cache=False,
        )
        logits = output.logits[:, :-1] / self.temperature
        logprobs = selective_log_softmax(logits, input_ids[:, -logits_to_keep:])
        with torch.no_grad():
            entropies = entropy_from_logits(logits) if compute_entropy else None
        return logprobs, entropies, None


class RlpReward:
    """log p(target | context, thought) under the policy less log p(target | context) under the average."""

    def __init__(self, policy: Any, average: Any, tokenizer: Any, micro_batch: int) -> None:
        self.policy, self.average, self.micro_batch = policy, average, micro_batch
        self.tokenizer = tokenizer
        self.lengths: list[int] = []
        self.open_id, self.close_id = tokenizer.convert_tokens_to_ids([OPEN, CLOSE])
        self.__name__ = "rlp"  # the trainer names its metrics after it

    @torch.no_grad()
    def __call__(
        self,
        prompts: list[str],
        completion_ids: list[list[int]],
        target: list[str],
        **_: Any,
    ) -> list[float]:
        self.lengths += map(len, completion_ids)
        target_ids = self.tokenizer.convert_tokens_to_ids(target)
        prompt_ids = self.tokenizer(prompts)["input_ids"]
        thinking = self.thinking(prompt_ids, self._closed(completion_ids), target_ids)
        no_think: dict[str, float] = {}
        for prompt, ids, target_id in zip(prompts, prompt_ids, target_ids, strict=True):
            if prompt not in no_think:
                no_think[prompt] = self._without_thought(ids[:-1], target_id)
        return [
            logprob - no_think[prompt] for logprob, prompt in zip(thinking, prompts, strict=True)
        ]

    def thinking(
        self, prompt_ids: list[list[int]], thoughts: list[list[int]], target_ids: list[int]
    ) -> list[float]:
        """Log-probs of the targets after contexts and thoughts, each row with its own context."""
        rows = [prompt + thought for prompt, thought in zip(prompt_ids, thoughts, strict=True)]
        found: list[float] = []
        for start in range(0, len(rows), self.micro_batch):
            end = start + self.micro_batch
            logits = self._last_logits(rows[start:end])
            found += _logprobs(logits, target_ids[start:end])
        return found

    def _last_logits(self, rows: list[list[int]]) -> torch.Tensor:
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        output = self.policy(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            logits_to_keep=1,
            use_cache=False,
        )
        return output.logits[:, -1]

    def _closed(self, completion_ids: list[list[int]]) -> list[list[int]]:
        return [
            ids if ids[-1] == self.close_id else [*ids, self.close_id] for ids in completion_ids
        ]

    def _without_thought(self, context_ids: list[int], target_id: int) -> float:
        ids = torch.tensor([context_ids])
        logits = self.average(input_ids=ids, logits_to_keep=1, use_cache=False).logits[:, -1]
        logits[:, self.open_id] = float("-inf")
        return _logprobs(logits, [target_id])[0]


class CachedReward(RlpReward):
    """The same from a KV cache: a context is prefilled once for all thoughts after it."""

    def thinking(
        self, prompt_ids: list[list[int]], thoughts: list[list[int]], target_ids: list[int]
    ) -> list[float]:
        found: list[float] = []
        for start, end in _groups(prompt_ids):
            cache = DynamicCache(config=self.policy.config)
            self.policy(
                input_ids=torch.tensor([prompt_ids[start]]),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache.batch_repeat_interleave(end - start)
            width = max(map(len, thoughts[start:end]))
            rows = [row + [0] * (width - len(row)) for row in thoughts[start:end]]
            output = self.policy(
                input_ids=torch.tensor(rows), past_key_values=cache, use_cache=True
            )
            last = torch.tensor([len(row) - 1 for row in thoughts[start:end]])
            logits = output.logits[torch.arange(len(rows)), last]
            found += _logprobs(logits, target_ids[start:end])
        return found


def _groups(prompt_ids: list[list[int]]) -> list[tuple[int, int]]:
    """Ranges of consecutive equal prompts."""
    starts = [i for i, ids in enumerate(prompt_ids) if i == 0 or ids != prompt_ids[i - 1]]
    return list(zip(starts, [*starts[1:], len(prompt_ids)], strict=True))


def _logprobs(logits: torch.Tensor, target_ids: list[int]) -> list[float]:
    chosen = torch.log_softmax(logits.float(), dim=-1)[torch.arange(len(target_ids)), target_ids]
    return chosen.tolist()  # type: ignore[no-any-return]


class StepWatch(TrainerCallback):  # type: ignore[misc]
    """Updates the moving average after each step and takes the process's CPU seconds."""

    def __init__(self, policy: Any, average: Any) -> None:
        self.policy, self.average = list(policy.parameters()), list(average.parameters())
        self.cpu_s: list[float] = []

    @torch.no_grad()
    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Called by the trainer after the optimizer's step."""
        torch._foreach_lerp_(self.average, self.policy, 1 - DECAY)
        self.cpu_s.append(time.process_time())


def train(
    model_path: Path,
    variant: str,
    *,
    context_tokens: int,
    thought_tokens: int,
    group_size: int,
    num_contexts: int,
    num_steps: int,
    micro_batch: int,
    scratch: Path,
) -> dict[str, float]:
    """``1 + num_steps`` steps: CPU seconds of a step after the first, and the peak memory in bytes."""
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    policy = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    average = copy.deepcopy(policy).eval().requires_grad_(False)
    watch = StepWatch(policy, average)
    texts = windows(num_contexts * (1 + num_steps), context_tokens)
    trainer_class, reward_class = {
        "stock": (GRPOTrainer, RlpReward),
        "tuned": (TunedTrainer, CachedReward),
    }[variant]
    reward = reward_class(policy, average, tokenizer, micro_batch)
    trainer = trainer_class(
        model=policy,
        reward_funcs=reward,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict(
            {
                "prompt": [" ".join([*words[:-1], OPEN]) for words in texts],
                "target": [words[-1] for words in texts],
            }
        ),
        args=GRPOConfig(
            output_dir=str(scratch),
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=group_size * num_contexts // micro_batch,
            num_generations=group_size,
            max_completion_length=thought_tokens,
            temperature=1.0,
            loss_type="grpo",
            scale_rewards="none",
            beta=0.0,
            epsilon=0.2,
            epsilon_high=0.28,
            max_steps=1 + num_steps,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            remove_unused_columns=False,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        callbacks=[watch],
    )
    trainer.train()
    return {
        "cpu_s": (watch.cpu_s[-1] - watch.cpu_s[0]) / num_steps,
        "peak_bytes": peak_bytes(os.getpid()),
        "thought_tokens": fmean(reward.lengths),
    }


def main() -> None:
    """Run with the settings of one JSON argument and print the result as JSON."""
    import sys

    settings = json.loads(sys.argv[1])
    paths = {
        "model_path": Path(settings.pop("model_path")),
        "scratch": Path(settings.pop("scratch")),
    }
    print(json.dumps(train(**paths, **settings)))


if __name__ == "__main__":
    main()
