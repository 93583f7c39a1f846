"""The batch builder: from scored rollouts to the thought trees the learner trains on.

    penalise -> drop groups -> advantages -> mask thoughts -> weights -> branches

Design: all decisions of the objective and the configuration end here as arrays; the learner knows neither.
The whole batch is processed at once, because estimators and aggregations need all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from forethought.config.sections import FilterSection, LearnerSection
from forethought.estimators import Estimator
from forethought.objectives import Mode, Objective
from forethought.types import ScoredRollout
from trainer.batch import aggregation, filters
from trainer.batch.branches import ThoughtWeights, branches_of, written_documents
from trainer.batch.thought_tree import ThoughtTree, trees_of_documents
from trainer.batch.training_group import TrainingGroup, groups_of


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """The trees of one train step, and counts of what the filters left out.

    Example:
        ``TrainingBatch(trees, {"dropped/zero_variance": 3})``
    """

    trees: list[ThoughtTree]
    metrics: dict[str, int]


@dataclass(frozen=True, slots=True)
class BatchBuilder:
    """Builds training batches. Of ``learner`` it uses only ``aggregation`` and ``next_token_coef``.

    Example:
        ``BatchBuilder(objective, estimator).build(results).trees``
    """

    objective: Objective
    estimator: Estimator
    filters: FilterSection = field(default_factory=FilterSection)
    learner: LearnerSection = field(default_factory=LearnerSection)

    def build(self, results: Sequence[ScoredRollout]) -> TrainingBatch:
        """The training batch of all valid results; failed ones make it smaller."""
        valid = [result for result in results if result.failure is None]
        groups, metrics = self._chosen(groups_of(valid))
        trained_BG = self._trained(groups)
        if self.filters.truncated == "mask":
            metrics["masked_thoughts"] = sum(g.count(False) for g in trained_BG)
        if self.objective.mode is Mode.WRITE:
            weight = self.objective.thought_weight
            written = written_documents(groups, trained_BG, weight)
            trees = trees_of_documents(written, _bos_ids(valid))
        else:
            trees = _trees(groups, self._thought_weights(groups, trained_BG))
        return TrainingBatch(trees + self._next_token(valid), metrics)

    def keeps(self, result: ScoredRollout) -> bool:
        """Whether the filters keep any group of a valid result."""
        kept, _ = self._chosen(groups_of([result]))
        return bool(kept)

    def _chosen(self, groups: list[TrainingGroup]) -> tuple[list[TrainingGroup], dict[str, int]]:
        metrics: dict[str, int] = {}
        if self.filters.truncated == "penalise":
            groups, metrics["penalised_thoughts"] = self._penalised(groups)
        kept_B, dropped = filters.kept_groups(
            self.filters, [g.rewards_G for g in groups], [g.policy_logprobs_G for g in groups]
        )
        kept = [group for group, is_kept in zip(groups, kept_B, strict=True) if is_kept]
        return kept, metrics | dropped

    def _penalised(self, groups: list[TrainingGroup]) -> tuple[list[TrainingGroup], int]:
        section = self.filters
        penalties_BG = filters.overlong_penalties(
            [group.thoughts_G for group in groups],
            max((group.task.sampling.max_thought_tokens for group in groups), default=1),
            section.truncated_margin_tokens,
            section.truncated_penalty,
        )
        changed = [
            replace(
                group,
                rewards_G=tuple(r - p for r, p in zip(group.rewards_G, penalties_G, strict=True)),
            )
            for group, penalties_G in zip(groups, penalties_BG, strict=True)
        ]
        return changed, sum(penalty > 0 for penalties_G in penalties_BG for penalty in penalties_G)

    def _trained(self, groups: Sequence[TrainingGroup]) -> list[list[bool]]:
        if self.filters.truncated == "mask":
            return filters.finished([group.thoughts_G for group in groups])
        return [[True] * len(group.thoughts_G) for group in groups]

    def _thought_weights(
        self, groups: Sequence[TrainingGroup], trained_BG: Sequence[Sequence[bool]]
    ) -> list[list[ThoughtWeights]]:
        """The weights of every thought, [B][G]."""
        advantages_BG = self.estimator.advantages([group.rewards_G for group in groups])
        weights_BG = self._weights(groups, trained_BG)
        num_trained_groups = sum(map(any, trained_BG))
        return [
            [
                ThoughtWeights(
                    weight, advantage, thought / num_trained_groups, answer / num_trained_groups
                )
                for weight, advantage, thought, answer in zip(
                    weights_G, advantages_G, *self._imitated(group, trained_G), strict=True
                )
            ]
            if any(trained_G)
            else [ThoughtWeights(0.0, 0.0)] * len(trained_G)
            for group, trained_G, weights_G, advantages_G in zip(
                groups, trained_BG, weights_BG, advantages_BG, strict=True
            )
        ]

    def _weights(
        self, groups: Sequence[TrainingGroup], trained_BG: Sequence[Sequence[bool]]
    ) -> list[list[float]]:
        if self.objective.mode is not Mode.REINFORCE:
            return [[0.0] * len(group.thoughts_G) for group in groups]
        lengths_BG = [
            [len(t.token_ids_L) * is_trained for t, is_trained in zip(g.thoughts_G, trained_G, strict=True)]
            for g, trained_G in zip(groups, trained_BG, strict=True)
        ]  # fmt: skip
        return aggregation.weights(
            self.learner.aggregation, lengths_BG, _budget(groups), self.objective.token_weights
        )

    def _imitated(
        self, group: TrainingGroup, trained_G: Sequence[bool]
    ) -> tuple[list[float], list[float]]:
        """Next-token weights of thoughts and of answers before the mean over groups; [G] each."""
        rewards = [
            r for r, is_trained in zip(group.rewards_G, trained_G, strict=True) if is_trained
        ]
        imitation = self.objective.imitation(rewards) if rewards else None
        if imitation is None:
            return [0.0] * len(trained_G), [0.0] * len(trained_G)
        thoughts, answers = iter(imitation.thought_weights_G), iter(imitation.answer_weights_G)
        return (
            [next(thoughts) if is_trained else 0.0 for is_trained in trained_G],
            [next(answers) if is_trained else 0.0 for is_trained in trained_G],
        )

    def _next_token(self, results: Sequence[ScoredRollout]) -> list[ThoughtTree]:
        """Next-token loss on the batch's own documents, in the same step."""
        coef = self.learner.next_token_coef
        if not coef:
            return []
        documents = [result.rollout.task.document for result in results]
        trees = trees_of_documents(documents, _bos_ids(results))
        return [
            replace(tree, nll_weights_N=tuple(coef * weight for weight in tree.nll_weights_N))
            for tree in trees
        ]


def _bos_ids(results: Sequence[ScoredRollout]) -> tuple[int, ...]:
    """What precedes every row of a run; all tasks of a run have the same prompting."""
    return results[0].rollout.task.prompting.bos_ids if results else ()


def _budget(groups: Sequence[TrainingGroup]) -> int:
    return max((group.task.sampling.max_response_tokens for group in groups), default=1)


def _trees(
    groups: Sequence[TrainingGroup], thought_weights_BG: Iterable[Sequence[ThoughtWeights]]
) -> list[ThoughtTree]:
    """One tree per task, with the document as its trunk and the branches of all its positions."""
    pairs = zip(groups, thought_weights_BG, strict=True)
    trees = []
    for _, of_task in groupby(pairs, key=lambda pair: id(pair[0].result)):
        with_weights = list(of_task)
        task = with_weights[0][0].task
        branches = tuple(
            branch
            for group, thought_weights_G in with_weights
            for thought, weights in zip(group.thoughts_G, thought_weights_G, strict=True)
            for branch in branches_of(group, thought, weights)
        )
        head_ids = task.prompting.bos_ids + task.prompting.head_ids
        trees.append(ThoughtTree(head_ids, task.document.token_ids_N, (), branches))
    return trees
