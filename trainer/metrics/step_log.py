"""The log of steps: one JSON object per line, and optional TensorBoard scalars.

Design: the journal holds the data, this log the summary; non-finite values become null, so that every line
is valid JSON for any reader.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from forethought.run.files import step_line, write_whole
from forethought.types import ScoredRollout, Thought
from trainer.batch.filters import is_flat, spread

log = logging.getLogger(__name__)


class MetricsLog:
    """Appends to ``metrics.jsonl``; a resumed run drops damaged lines and those past its checkpoint."""

    def __init__(self, path: Path, num_steps_done: int, tensorboard: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _truncate(path, num_steps_done)
        self._file = path.open("a", encoding="utf-8")
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(path.parent / "tensorboard"))

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Write one line and flush it."""
        line = {"step": step, "time_unix_s": time.time(), **values}
        finite = {key: _finite(value) for key, value in line.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()
        if self._board is not None:
            for key, value in finite.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(key, value, step)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def rollout_metrics(results: Sequence[ScoredRollout], version: int) -> dict[str, Any]:
    """Means over a batch's successful results: reward and gain in nats, thought length in tokens.

    ``lag_mean`` is the mean age of the sampled tokens, in versions before ``version``; ``sampled_entropy``
    estimates the policy's entropy per token as the negative mean of the behaviour log-probs, at the
    sampling temperature. The mean reward is also given per source of the mixture. ``sampled_tokens`` and
    ``scored_tokens`` count whole rows, context and thought: the tokens that a sampler and a scorer without
    prefix sharing would process. They count every result, whether it is trained on, dropped by a filter,
    replaced, or failed after it was sampled; work whose result never arrived is unknown.
    """
    succeeded = [result for result in results if result.failure is None]
    thoughts = [t for r in succeeded for thoughts_G in r.rollout.thoughts_KG for t in thoughts_G]
    values: dict[str, Any] = {"num_groups": sum(len(r.rewards_KG) for r in succeeded)}
    values |= _work(results)
    if not thoughts:
        return values
    values |= _reward_metrics(succeeded) | _thought_metrics(thoughts, version)
    if gains := _gains(succeeded):
        values["information_gain"] = fmean(gains)
        values["think_nll"] = -fmean(_policy_logprobs(succeeded))
    by_source: dict[str, list[ScoredRollout]] = {}
    for result in succeeded:
        by_source.setdefault(result.rollout.task.document.source, []).append(result)
    for source, of_source in by_source.items():
        values[f"source/{source}/reward_mean"] = fmean(_rewards(of_source))
    return values


def _reward_metrics(results: Sequence[ScoredRollout]) -> dict[str, float]:
    groups = [rewards_G for result in results for rewards_G in result.rewards_KG]
    return {
        "reward_mean": fmean(_rewards(results)),
        "reward_group_spread": fmean(max(rewards_G) - min(rewards_G) for rewards_G in groups),
        "reward_group_std": fmean(map(spread, groups)),
        "zero_variance_share": fmean(map(is_flat, groups)),
    }


def _thought_metrics(thoughts: Sequence[Thought], version: int) -> dict[str, float]:
    spans = [span for thought in thoughts for span in thought.version_spans]
    num_tokens = sum(span.num_tokens for span in spans)
    lengths = sorted(len(thought.thought_ids) for thought in thoughts)
    logprobs = [logprob for thought in thoughts for logprob in thought.behaviour_logprobs_L]
    return {
        "thought_tokens_mean": fmean(lengths),
        "thought_tokens_p95": lengths[math.ceil(0.95 * len(lengths)) - 1],
        "truncated_share": fmean(not thought.closed for thought in thoughts),
        "sampled_entropy": -fmean(logprobs) if logprobs else 0.0,
        "lag_mean": sum((version - s.version) * s.num_tokens for s in spans) / num_tokens,
    }


def _rewards(results: Sequence[ScoredRollout]) -> list[float]:
    return [reward for r in results for rewards_G in r.rewards_KG for reward in rewards_G]


def _policy_logprobs(results: Sequence[ScoredRollout]) -> list[float]:
    return [
        logprob for r in results for logprobs_G in r.policy_logprobs_KG for logprob in logprobs_G
    ]


def _gains(results: Sequence[ScoredRollout]) -> list[float]:
    """log p(target | thought) - log p_baseline(target), independent of the objective's reward.

    Empty if the objective requests no likelihoods.
    """
    return [
        policy_logprob - baseline_logprob
        for result in results
        for policy_logprobs_G, baseline_logprob in zip(
            result.policy_logprobs_KG, result.baseline_logprobs_K, strict=True
        )
        for policy_logprob in policy_logprobs_G
    ]


def _work(results: Sequence[ScoredRollout]) -> dict[str, int]:
    """Tokens sampled and scored; empty if no result has a thought."""
    if not any(result.rollout.thoughts_KG for result in results):
        return {}
    return {"sampled_tokens": _sampled_tokens(results), "scored_tokens": _scored_tokens(results)}


def _sampled_tokens(results: Sequence[ScoredRollout]) -> int:
    return sum(
        len(task.prompting.thinking_prefix(())) + position.index + len(thought.token_ids_L)
        for result in results
        for task in (result.rollout.task,)
        for position, thoughts_G in zip(task.positions_K, result.rollout.thoughts_KG, strict=False)
        for thought in thoughts_G
    )  # fmt: skip


def _scored_tokens(results: Sequence[ScoredRollout]) -> int:
    return sum(_target_tokens(result) + _prediction_tokens(result) for result in results)


def _target_tokens(result: ScoredRollout) -> int:
    """One row per thought and one without a thought per group; 0 if the reward needs no likelihoods."""
    num_tokens = 0
    task, prompting = result.rollout.task, result.rollout.task.prompting
    # A failed result may lack any of them.
    for position, thoughts_G, logprobs_G in zip(
        task.positions_K, result.rollout.thoughts_KG, result.policy_logprobs_KG, strict=False
    ):
        if not logprobs_G:
            continue
        plain = position.index + len(position.target_ids_H)
        with_thought = plain + prompting.num_thinking_tokens
        thoughts = sum(with_thought + len(thought.thought_ids) for thought in thoughts_G)
        num_tokens += thoughts + plain + prompting.num_no_think_tokens
    return num_tokens


def _prediction_tokens(result: ScoredRollout) -> int:
    """Where the reward needs the likelihood of predicted tokens: one row, without a thought, for each."""
    task = result.rollout.task
    if "prediction" not in task.models:
        return 0
    num_around = task.prompting.num_no_think_tokens + 1
    return sum(
        num_around + position.index
        for position, thoughts_G, _ in zip(
            task.positions_K, result.rollout.thoughts_KG, result.rewards_KG, strict=False
        )
        for thought in thoughts_G
        if thought.num_prediction_tokens
    )


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _truncate(path: Path, num_steps_done: int) -> None:
    if not path.exists():
        return
    lines = [(line, step_line(line)) for line in path.read_bytes().split(b"\n")[:-1]]
    kept = [line for line, step in lines if step is not None and step["step"] <= num_steps_done]
    if num_damaged := sum(step is None for _, step in lines):
        log.warning(
            "%d lines of %s hold no step and are dropped (a power cut leaves such lines); %d steps "
            "up to step %d remain",
            num_damaged,
            path,
            len(kept),
            num_steps_done,
        )
    write_whole(path, b"".join(line + b"\n" for line in kept).decode("utf-8"))
