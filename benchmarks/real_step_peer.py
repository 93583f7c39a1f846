"""The peer of ``benchmarks.real_step``: the steps of a run once more, padded, in a process of its own."""

from __future__ import annotations

import copy
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from transformers import AutoModelForCausalLM

from benchmarks import padded
from benchmarks.whole_run import peak_bytes
from forethought.run.directory import RunDirectory
from forethought.run.journal import read_journal
from forethought.types import ScoredRollout, Thought

LEARNING_RATE, DECAY = 1e-5, 0.999
MAX_BATCH_TOKENS = 16_384  # of one forward pass without gradients


class PaddedSteps:
    """Policy, moving average and optimizer of the peer."""

    def __init__(self, model: Path, micro_batch_tokens: int) -> None:
        self.policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.average = copy.deepcopy(self.policy).requires_grad_(False)
        self.micro_batch_tokens = micro_batch_tokens
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.999), weight_decay=0.0
        )

    def step(self, groups: Sequence[ScoredRollout]) -> tuple[list[list[float]], float]:
        """One step on the run's tasks; the rewards of its thoughts, and the mean length of its own."""
        sampling = groups[0].rollout.task.sampling
        sampled = padded.sample(
            self.policy,
            [_prefix(group) for group in groups],
            sampling.group_size,
            sampling.max_thought_tokens,
            max_batch_tokens=MAX_BATCH_TOKENS,
            stop_ids=sampling.stop_ids,
        )
        rewards = self.rewards(groups)
        self.learn(groups, rewards)
        return rewards, fmean(len(drawn.token_ids_L) for group in sampled for drawn in group)

    def rewards(self, groups: Sequence[ScoredRollout]) -> list[list[float]]:
        """RLP's gain of every thought. Shape [groups][G]."""
        thinking = padded.score(
            self.policy,
            [_thinking_row(g, thought) for g in groups for thought in g.rollout.thoughts_KG[0]],
            MAX_BATCH_TOKENS,
        )
        without = padded.score(self.average, [_no_think_row(g) for g in groups], MAX_BATCH_TOKENS)
        logprobs = iter(thinking)
        return [
            [sum(next(logprobs)) - sum(baseline) for _ in group.rollout.thoughts_KG[0]]
            for group, baseline in zip(groups, without, strict=True)
        ]

    def learn(self, groups: Sequence[ScoredRollout], rewards: Sequence[Sequence[float]]) -> None:
        """Gradient, clipping, AdamW and the moving average."""
        rows = []
        for group, rewards_G in zip(groups, rewards, strict=True):
            for thought, reward in zip(group.rollout.thoughts_KG[0], rewards_G, strict=True):
                size = len(rewards_G)
                advantage = (reward - fmean(rewards_G)) * size / (size - 1)
                weight = 1 / (len(groups) * size * len(thought.token_ids_L))
                row = padded.Row(_prefix(group), thought.token_ids_L)
                rows.append(padded.LearnedRow(row, thought.behaviour_logprobs_L, advantage, weight))
        self.optimizer.zero_grad()
        padded.learn(self.policy, rows, self.micro_batch_tokens)
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.policy.parameters()), 1 - DECAY
            )


def _prefix(group: ScoredRollout) -> tuple[int, ...]:
    return group.rollout.task.prompting.thinking_prefix(_context(group))


def _thinking_row(group: ScoredRollout, thought: Thought) -> padded.Row:
    task = group.rollout.task
    prefix = task.prompting.target_prefix(_context(group), thought.thought_ids, thought.closed)
    return padded.Row(prefix, task.positions_K[0].target_ids_H)


def _no_think_row(group: ScoredRollout) -> padded.Row:
    task = group.rollout.task
    prefix = task.prompting.no_think_prefix(_context(group))
    return padded.Row(prefix, task.positions_K[0].target_ids_H, task.prompting.open_id)


def _context(group: ScoredRollout) -> tuple[int, ...]:
    task = group.rollout.task
    return task.document.token_ids_N[: task.positions_K[0].index]


def measure(model: Path, directory: Path, micro_batch_tokens: int) -> dict[str, float]:
    """Repeat the steps of the run in ``directory``; all but the first are measured."""
    torch.set_num_threads(1)
    steps, cpu_s, lengths, difference = PaddedSteps(model, micro_batch_tokens), [], [], 0.0
    for record in read_journal(RunDirectory(directory).journal):
        rewards, length = steps.step(record.results)
        lengths.append(length)
        cpu_s.append(time.process_time())
        if record.batch == 0:
            difference = max(
                abs(mine - its)
                for rewards_G, group in zip(rewards, record.results, strict=True)
                for mine, its in zip(rewards_G, group.rewards_KG[0], strict=True)
            )
    return {
        "cpu_s": (cpu_s[-1] - cpu_s[0]) / (len(cpu_s) - 1),
        "peak_bytes": peak_bytes(os.getpid()),
        "thought_tokens": fmean(lengths[1:]),
        "reward_difference": difference,
    }


def main() -> None:
    """Measure what one JSON argument names and print the result as JSON."""
    model, directory, micro_batch_tokens = json.loads(sys.argv[1])
    print(json.dumps(measure(Path(model), Path(directory), micro_batch_tokens)))


if __name__ == "__main__":
    main()
