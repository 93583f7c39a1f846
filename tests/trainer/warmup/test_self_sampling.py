"""What a warm-up trains on: the model's own thoughts, of lengths drawn in advance, in their texts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from forethought.config import load_settings
from forethought.preflight import check_run
from tests import architectures, tiny
from trainer.assembly import Assembly, assemble
from trainer.batch.thought_tree import ThoughtTree
from trainer.learner.learner import Learner
from trainer.warmup.self_sampling import SelfSampledThoughts

TEXT = "".join(f"the number {i} comes before the number {i + 1}. " for i in range(200))


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
            "objective.parameters={min_thought_tokens = 2, max_thought_tokens = 5, target_weight = 3.0}",
            "sampling.max_thought_tokens=8",
        ],
        {},
    )
    return assemble(settings, check_run(settings))


def thinking(trees: list[ThoughtTree]) -> list[ThoughtTree]:
    return [tree for tree in trees if tree.branches]


def test_every_length_is_sampled_and_followed_by_the_rest_of_its_text(parts: Assembly) -> None:
    trees = thinking(SelfSampledThoughts(parts).take(40))
    lengths = set()
    for tree in trees:
        first, second = tree.branches
        assert first.index == second.index
        rest = tree.trunk_ids_N[first.index :]
        for branch in tree.branches:
            ids = branch.token_ids_T
            thought = ids[1 : len(ids) - len(rest) - 1]
            lengths.add(len(thought))
            assert ids == (tiny.OPEN_ID, *thought, tiny.CLOSE_ID, *rest)
            assert not {tiny.OPEN_ID, tiny.CLOSE_ID, *parts.end_ids} & set(thought)
            weights = branch.nll_weights_T
            unit = weights[1]
            expected = [0.0, *[unit] * (len(thought) + 1), 3 * unit, *[unit] * (len(rest) - 1)]
            assert weights == pytest.approx(expected)
        assert len(first.token_ids_T) == len(second.token_ids_T)  # one length for a position
    assert lengths == {2, 3, 4, 5}
    assert any(one.branches[0].token_ids_T != one.branches[1].token_ids_T for one in trees)
    total = sum(sum(branch.nll_weights_T) for tree in trees for branch in tree.branches)
    assert total == pytest.approx(1.0)


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
@pytest.mark.parametrize("name", architectures.EVERY)
def test_models_are_trained_after_they_sampled(parts: Assembly, name: str) -> None:
    """Whatever a model caches while it samples does not keep it from being trained."""
    parts.learner = Learner(
        architectures.prepared(name), parts.settings.learner, parts.settings.baseline
    )
    if fault := parts.learner.language_model.consistency.sampling_fault(48):
        pytest.skip(fault)
    before = [p.detach().clone() for p in parts.learner.model.parameters()]
    result = parts.learner.step(SelfSampledThoughts(parts).take(2))
    assert not result.skipped
    changed = zip(before, parts.learner.model.parameters(), strict=True)
    assert any(not torch.equal(was, now) for was, now in changed)
