"""What a warm-up trains on: the model's own thoughts, of lengths drawn in advance, in their texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from forethought.config import load_settings
from forethought.preflight import check_run
from tests import architectures, tiny
from trainer.assembly import Assembly, assemble
from trainer.batch.thought_tree import Branch, ThoughtTree
from trainer.learner.learner import Learner
from trainer.warmup.self_sampling import SelfSampledThoughts

TEXT = "".join(f"the number {i} comes before the number {i + 1}. " for i in range(200))


PARAMETERS = (
    "min_thought_tokens = 2, max_thought_tokens = 5, target_weight = 3.0, text_tokens = 9, "
    "num_positions = 2, thoughts_per_position = 2"
)


@pytest.fixture
def parts(tmp_path: Path) -> Assembly:
    (tmp_path / "text.txt").write_text(TEXT)
    settings = load_settings(
        None,
        [
            f"model.path={tiny.build_model_directory(tmp_path / 'model')}",
            f"run.directory={tmp_path / 'run'}",
            f"corpus.path={tmp_path / 'text.txt'}",
            "corpus.window_tokens=40",
            "objective.name=warmup",
            f"objective.parameters={{{PARAMETERS}}}",
            "sampling.max_thought_tokens=8",
        ],
        {},
    )
    return assemble(settings, check_run(settings))


def thinking(trees: list[ThoughtTree]) -> list[ThoughtTree]:
    return [tree for tree in trees if tree.branches]


def by_index(tree: ThoughtTree) -> list[Branch]:
    return sorted(tree.branches, key=lambda branch: branch.index)


def test_every_length_is_sampled_and_followed_by_the_rest_of_its_text(parts: Assembly) -> None:
    trees = thinking(SelfSampledThoughts(parts).take(40))
    lengths = set()
    for tree in trees:
        assert len({branch.index for branch in tree.branches}) <= 2  # one in a short window
        for branch in tree.branches:
            rest, ids = tree.trunk_ids_N[branch.index : branch.index + 9], branch.token_ids_T
            thought = ids[1 : len(ids) - len(rest) - 1]
            lengths.add(len(thought))
            assert ids == (tiny.OPEN_ID, *thought, tiny.CLOSE_ID, *rest)
            assert not {tiny.OPEN_ID, tiny.CLOSE_ID, *parts.end_ids} & set(thought)
            weights = branch.nll_weights_T
            unit = weights[1]
            expected = [0.0, *[unit] * (len(thought) + 1), 3 * unit, *[unit] * (len(rest) - 1)]
            assert weights == pytest.approx(expected)
    assert lengths == {2, 3, 4, 5}
    pairs = [(first.token_ids_T, second.token_ids_T) for first, second, *_ in map(by_index, trees)]
    assert all(len(first) == len(second) for first, second in pairs)  # one length for a position
    assert any(first != second for first, second in pairs)
    total = sum(sum(branch.nll_weights_T) for tree in trees for branch in tree.branches)
    assert total == pytest.approx(1.0)


def test_a_close_of_several_tokens_is_learned_whole(parts: Assembly) -> None:
    """With the weight of the thought before it; what the template has after it is not learned."""
    assert parts.markers is not None
    assert parts.prompting is not None
    close_ids = (70, 71)
    parts.markers = replace(parts.markers, close_ids=close_ids)
    parts.prompting = replace(parts.prompting, close_ids=(*close_ids, 72))
    branch = thinking(SelfSampledThoughts(parts).take(1))[0].branches[0]
    weights = [weight / branch.nll_weights_T[1] for weight in branch.nll_weights_T]
    end = next(i for i, w in enumerate(weights) if w == pytest.approx(3.0))
    assert branch.token_ids_T[end - 3 : end] == (70, 71, 72)
    assert weights[end - 4 : end] == pytest.approx([1, 1, 1, 0])


def test_texts_without_a_thought_are_learned_beside_them(parts: Assembly) -> None:
    trees = SelfSampledThoughts(parts).take(6)
    plain = [tree for tree in trees if not tree.branches]
    assert {tree.trunk_ids_N for tree in plain} == {tree.trunk_ids_N for tree in thinking(trees)}
    assert sum(sum(tree.nll_weights_N) for tree in plain) == pytest.approx(0.25)


def test_a_resumed_run_draws_the_same(parts: Assembly) -> None:
    source = SelfSampledThoughts(parts)
    source.take(3)
    cursor, expected = parts.corpus.cursor, source.take(3)
    parts.corpus.seek(cursor)
    assert SelfSampledThoughts(parts).take(3) == expected


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", sorted(architectures.EVERY)[::6])
def test_models_are_trained_after_they_sampled(parts: Assembly, name: str) -> None:
    """Whatever a model caches while it samples does not keep it from being trained."""
    source = SelfSampledThoughts(parts)  # before the tokenizer is gone
    parts.learner = Learner(
        architectures.prepared(name), parts.settings.learner, parts.settings.baseline
    )
    if fault := parts.learner.language_model.consistency.sampling_fault(48):
        pytest.skip(fault)
    before = [p.detach().clone() for p in parts.learner.model.parameters()]
    result = parts.learner.step(source.take(2))
    assert not result.skipped
    changed = zip(before, parts.learner.model.parameters(), strict=True)
    assert any(not torch.equal(was, now) for was, now in changed)
