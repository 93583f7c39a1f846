"""One train step: train on a batch, then do what is due between two batches.

    training batch -> step -> [next-token step] -> [no-think measurement]

Design: an interleaved next-token step reads fresh documents of the run's corpus, advances the version
like any step, and admits no work: batches and versions are two counters. Documents are drawn in step
order, so a resumed run reads the same ones. The price is that with ``learner.max_staleness`` S a token may
be more than S versions old, by the number of next-token steps in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from forethought.config.sections import LearnerSection
from forethought.special_tokens import special_tokens_of
from forethought.types import ScoredRollout
from trainer.admission.feed import Documents
from trainer.batch.builder import BatchBuilder
from trainer.batch.thought_tree import trees_of_documents
from trainer.learner.learner import Learner, StepResult
from trainer.metrics.no_think import no_think_metrics


@dataclass(frozen=True, slots=True)
class StepReport:
    """The outcome of one train step. ``version`` is the policy version before the step; the result's
    tokens and skipped passes include the next-token step's.

    Example:
        ``StepReport(result, version=41, metrics={"no_think_nll": 1.5})``
    """

    result: StepResult
    version: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class TrainStep:
    """The learner, its batch builder, and the source of documents.

    Example:
        ``TrainStep(learner, builder, corpus, settings.learner).run(results, step=40)``
    """

    learner: Learner
    builder: BatchBuilder
    documents: Documents
    section: LearnerSection

    def run(self, results: Sequence[ScoredRollout], step: int) -> StepReport:
        """Train on the batch of ``step`` (counted from 1), then do what is due after it. Blocking."""
        batch = self.builder.build(results)
        version = self.learner.version
        result = self.learner.step(batch.trees, self.section.inner_epochs)
        metrics: dict[str, float] = {**batch.metrics}
        if self.section.next_token_coef:
            metrics["nll"] = result.nll
        if _is_due(step, self.section.next_token_every_steps):
            plain = self._next_token_step()
            metrics["next_token_nll"] = plain.nll
            result = _with_next_token_step(result, plain)
        metrics["skipped_passes"] = result.num_skipped_passes
        if _is_due(step, self.section.no_think_every_steps):
            metrics |= no_think_metrics(
                self.learner.language_model, results, self.section.micro_batch_tokens
            )
        return StepReport(result, version, metrics)

    def _next_token_step(self) -> StepResult:
        documents = self.documents.take(self.section.batch_tasks)
        bos_ids = special_tokens_of(self.learner.language_model.tokenizer).bos_ids
        return self.learner.step(trees_of_documents(documents, bos_ids))


def _with_next_token_step(result: StepResult, plain: StepResult) -> StepResult:
    return replace(
        result,
        num_tokens=result.num_tokens + plain.num_tokens,
        num_skipped_passes=result.num_skipped_passes + plain.num_skipped_passes,
    )


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
