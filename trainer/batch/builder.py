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
from trainer.batch.branches import Shares, branches_of, written_documents
from trainer.batch.learned_group import LearnedGroup, groups_of
from trainer.batch.thought_tree import ThoughtTree, trees_of_documents


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
        sound = [result for result in results if result.failure is None]
        groups, metrics = self._chosen(groups_of(sound))
        learned_BG = self._learned(groups)
        if self.filters.truncated == "mask":
            metrics["masked_thoughts"] = sum(g.count(False) for g in learned_BG)
        if self.objective.mode is Mode.WRITE:
            weight = self.objective.thought_weight
            trees = trees_of_documents(written_documents(groups, learned_BG, weight))
        else:
            trees = _trees(groups, self._shares(groups, learned_BG))
        return TrainingBatch(trees + self._next_token(sound), metrics)

    def keeps(self, result: ScoredRollout) -> bool:
        """Whether the filters keep any group of a valid result."""
        kept, _ = self._chosen(groups_of([result]))
        return bool(kept)

    def _chosen(self, groups: list[LearnedGroup]) -> tuple[list[LearnedGroup], dict[str, int]]:
        metrics: dict[str, int] = {}
        if self.filters.truncated == "penalise":
            groups, metrics["penalised_thoughts"] = self._penalised(groups)
        kept_B, dropped = filters.kept_groups(
            self.filters, [g.rewards_G for g in groups], [g.policy_logprobs_G for g in groups]
        )
        kept = [group for group, is_kept in zip(groups, kept_B, strict=True) if is_kept]
        return kept, metrics | dropped

    def _penalised(self, groups: list[LearnedGroup]) -> tuple[list[LearnedGroup], int]:
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

    def _learned(self, groups: Sequence[LearnedGroup]) -> list[list[bool]]:
        if self.filters.truncated == "mask":
            return filters.finished([group.thoughts_G for group in groups])
        return [[True] * len(group.thoughts_G) for group in groups]

    def _shares(
        self, groups: Sequence[LearnedGroup], learned_BG: Sequence[Sequence[bool]]
    ) -> list[list[Shares]]:
        """Of every thought, [B][G]."""
        advantages_BG = self.estimator.advantages([group.rewards_G for group in groups])
        weights_BG = self._weights(groups, learned_BG)
        num_learned_groups = sum(map(any, learned_BG))
        return [
            [
                Shares(weight, advantage, thought / num_learned_groups, answer / num_learned_groups)
                for weight, advantage, thought, answer in zip(
                    weights_G, advantages_G, *self._imitated(group, learned_G), strict=True
                )
            ]
            if any(learned_G)
            else [Shares(0.0, 0.0)] * len(learned_G)
            for group, learned_G, weights_G, advantages_G in zip(
                groups, learned_BG, weights_BG, advantages_BG, strict=True
            )
        ]

    def _weights(
        self, groups: Sequence[LearnedGroup], learned_BG: Sequence[Sequence[bool]]
    ) -> list[list[float]]:
        if self.objective.mode is not Mode.REINFORCE:
            return [[0.0] * len(group.thoughts_G) for group in groups]
        lengths_BG = [
            [len(t.token_ids_L) * is_learned for t, is_learned in zip(g.thoughts_G, learned_G, strict=True)]
            for g, learned_G in zip(groups, learned_BG, strict=True)
        ]  # fmt: skip
        return aggregation.weights(
            self.learner.aggregation, lengths_BG, _budget(groups), self.objective.token_weights
        )

    def _imitated(
        self, group: LearnedGroup, learned_G: Sequence[bool]
    ) -> tuple[list[float], list[float]]:
        """Next-token weights of thoughts and of answers before the mean over groups; [G] each."""
        rewards = [
            r for r, is_learned in zip(group.rewards_G, learned_G, strict=True) if is_learned
        ]
        imitation = self.objective.imitation(rewards) if rewards else None
        if imitation is None:
            return [0.0] * len(learned_G), [0.0] * len(learned_G)
        thoughts, answers = iter(imitation.thought_weights_G), iter(imitation.answer_weights_G)
        return (
            [next(thoughts) if is_learned else 0.0 for is_learned in learned_G],
            [next(answers) if is_learned else 0.0 for is_learned in learned_G],
        )

    def _next_token(self, results: Sequence[ScoredRollout]) -> list[ThoughtTree]:
        """Next-token loss on the batch's own documents, in the same step."""
        coef = self.learner.next_token_coef
        if not coef:
            return []
        trees = trees_of_documents([result.rollout.task.document for result in results])
        return [
            replace(tree, nll_weights_N=tuple(coef * weight for weight in tree.nll_weights_N))
            for tree in trees
        ]


def _budget(groups: Sequence[LearnedGroup]) -> int:
    return max((group.task.sampling.max_response_tokens for group in groups), default=1)


def _trees(
    groups: Sequence[LearnedGroup], shares_BG: Iterable[Sequence[Shares]]
) -> list[ThoughtTree]:
    """One tree per task, with the document as its trunk and the branches of all its positions."""
    pairs = zip(groups, shares_BG, strict=True)
    trees = []
    for _, of_task in groupby(pairs, key=lambda pair: id(pair[0].result)):
        with_shares = list(of_task)
        task = with_shares[0][0].task
        branches = tuple(
            branch
            for group, shares_G in with_shares
            for thought, shares in zip(group.thoughts_G, shares_G, strict=True)
            for branch in branches_of(group, thought, shares)
        )
        trees.append(ThoughtTree(task.prompting.head_ids, task.document.token_ids_N, (), branches))
    return trees
