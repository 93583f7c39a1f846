"""The learner: thought trees in, one new policy version out. It knows neither objectives nor queues.

    for each optimizer pass: forward and backward over all micro-batches -> AdamW -> EMA baseline

Design: dropout stays off (the model is never put into training mode), because the importance ratio of eq. 8
is 1 on fresh data only if sampler and learner compute the same function. A batch with a non-finite loss or
gradient, or with nothing to train on, is skipped; the version still advances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from forethought.compute.forms import forms_of
from forethought.compute.model import LanguageModel
from forethought.compute.weights import as_saved, named_weights, serialise
from forethought.config.sections import BaselineSection, LearnerSection
from trainer.batch.thought_tree import ThoughtTree
from trainer.learner.batching import MicroBatch, micro_batches
from trainer.learner.ema import Baseline
from trainer.learner.loss import LossParts, batch_loss, policy_logprobs
from trainer.learner.optimizer import MasterOptimizer
from trainer.learner.summation import float32_sums


@dataclass(frozen=True, slots=True)
class StepResult:
    """The outcome of one step; ``skipped`` means that the weights did not change.

    ``num_tokens`` trained on are those of whole rows, shared or not (:mod:`forethought.run.cost`), summed
    over all optimizer passes. ``num_skipped_passes`` counts passes with a non-finite loss or gradient; the
    other values are of the passes that updated the weights, if any did: loss, gradient norm and learning
    rate of the last one, shares and ratio of the worst.

    ``effective_sample_share`` is (sum w)^2 / (n sum w^2) over thought tokens, w being the learner's
    probability over the sampler's: 1 on fresh samples, 0 without any thought token.

    Example:
        ``StepResult(loss=-0.02, nll=0.0, grad_norm=0.4, learning_rate=1e-4, num_tokens=5_000, …)``
    """

    loss: float = 0.0
    nll: float = 0.0
    grad_norm: float = 0.0
    learning_rate: float = 0.0
    num_tokens: int = 0
    num_skipped_passes: int = 0
    clipped_share: float = 0.0
    ratio_max: float = 0.0
    effective_sample_share: float = 0.0
    skipped: bool = True


class Learner:
    """Model, optimizer and baseline, with the counters of optimizer steps and versions."""

    def __init__(
        self, language_model: LanguageModel, section: LearnerSection, baseline: BaselineSection
    ) -> None:
        self.language_model = language_model
        self._section = section
        self._optimizer = MasterOptimizer(language_model.model, section)
        self.baseline = Baseline(baseline, self._optimizer.masters)
        self.version = 0
        self.num_optimizer_steps = 0

    @property
    def model(self) -> Any:
        """The policy's compute copy."""
        return self.language_model.model

    def speed_up_rows(self, ids: Sequence[int], factor: float) -> None:
        """Give the embedding rows of ``ids``, new tokens, ``factor`` times the learning rate."""
        self._optimizer.speed_up_rows(self.model, ids, factor)

    def step(self, trees: Sequence[ThoughtTree], num_passes: int = 1) -> StepResult:
        """Train on one batch for ``num_passes`` optimizer passes, and advance the version.

        The version advances once, even if there was nothing to train on.
        """
        self.version += 1
        device = self.language_model.device
        budget = self._section.micro_batch_tokens
        batches = micro_batches(trees, budget, device, forms_of(self.model).with_gradient)
        if not batches:
            return StepResult()
        proximal: list[torch.Tensor] = []
        return _of_all_passes([self._optimizer_pass(batches, proximal) for _ in range(num_passes)])

    def policy_payload(self) -> bytes:
        """The policy as published: the compute copy, bit for bit, as ``save_pretrained`` would write it."""
        return serialise(as_saved(self.model, named_weights(self.model)))

    def baseline_payload(self) -> bytes:
        """The baseline in the policy's dtype."""
        weights = named_weights(self.model)
        averaged = {
            name: tensor.to(weights[name].dtype) for name, tensor in self.baseline.tensors.items()
        }
        return serialise(as_saved(self.model, weights | averaged))

    def state(self) -> dict[str, torch.Tensor]:
        """The complete training state as flat named tensors, for a checkpoint."""
        random_state = {"random/cpu": torch.get_rng_state()}
        return self._optimizer.state() | self.baseline.state() | random_state

    def restore(
        self, tensors: dict[str, torch.Tensor], version: int, num_optimizer_steps: int
    ) -> None:
        """The inverse of :meth:`state`."""
        self._optimizer.restore(tensors)
        self.baseline.restore(tensors)
        torch.set_rng_state(tensors["random/cpu"])
        self.version, self.num_optimizer_steps = version, num_optimizer_steps

    def _optimizer_pass(
        self, batches: list[MicroBatch], proximal: list[torch.Tensor]
    ) -> StepResult:
        """One update. ``proximal`` are the log-probs of the first pass, which adds them."""
        self._optimizer.zero_grad()
        parts = [self._backward(index, batch, proximal) for index, batch in enumerate(batches)]
        loss = sum(part.surrogate + part.nll for part in parts)
        norm, learning_rate = math.nan, 0.0
        if math.isfinite(loss):
            norm, learning_rate = self._optimizer.step(self.num_optimizer_steps)
        skipped = not math.isfinite(norm)
        if not skipped:
            self.num_optimizer_steps += 1
            self.baseline.update(self._optimizer.masters)
        num_surrogate = sum(part.num_surrogate for part in parts)
        return StepResult(
            loss=loss,
            nll=sum(part.nll for part in parts),
            grad_norm=norm,
            learning_rate=learning_rate,
            num_tokens=_num_row_tokens(batches),
            clipped_share=sum(part.num_clipped for part in parts) / max(1, num_surrogate),
            ratio_max=max(part.ratio_max for part in parts),
            effective_sample_share=_effective_share(parts),
            num_skipped_passes=int(skipped),
            skipped=skipped,
        )

    def _backward(self, index: int, batch: MicroBatch, proximal: list[torch.Tensor]) -> LossParts:
        with float32_sums(self.model):
            logprobs_M = policy_logprobs(self.model, batch)
        if index == len(proximal):
            proximal.append(logprobs_M.detach())
        parts = batch_loss(
            batch,
            logprobs_M,
            clip_low=self._section.clip_low,
            clip_high=self._section.clip_high,
            surrogate=self._section.loss,
            proximal_logprobs_M=proximal[index],
            importance_cap=self._section.importance_cap,
        )
        parts.loss.backward()  # type: ignore[no-untyped-call]
        return parts


def _num_row_tokens(batches: Sequence[MicroBatch]) -> int:
    return sum(batch.num_row_tokens for batch in batches)


def _of_all_passes(passes: Sequence[StepResult]) -> StepResult:
    updates = [result for result in passes if not result.skipped] or passes
    return replace(
        updates[-1],
        num_tokens=sum(result.num_tokens for result in passes),
        num_skipped_passes=sum(result.num_skipped_passes for result in passes),
        clipped_share=max(result.clipped_share for result in updates),
        ratio_max=max(result.ratio_max for result in updates),
        effective_sample_share=min(result.effective_sample_share for result in updates),
    )


def _effective_share(parts: Sequence[LossParts]) -> float:
    num_tokens = sum(part.num_surrogate for part in parts)
    squares = sum(part.importance_squares for part in parts)
    if not num_tokens or not squares:
        return 0.0
    return float(sum(part.importance_sum for part in parts) ** 2 / (num_tokens * squares))
