"""Scores and samples of rows that share contexts equal those of separate rows, for every architecture."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from forethought.compute import packing, token_logprobs
from forethought.compute.decode_batches import sample_within
from forethought.compute.forms import forms_of
from forethought.compute.logprob import Continuation, score_continuations
from forethought.compute.model import LanguageModel
from forethought.compute.sampling import Sample, SampleRequest, TargetText
from forethought.compute.trees.layout import TreeLayout, layout_of
from forethought.compute.trees.mask import TreeMask
from tests import architectures, tiny
from tests.forethought.compute import separate_rows

BATCH_TOKENS = 256
TOLERANCE_NATS = 1e-5
DECODING_ERRORS_NATS = {"nemotron_h": 1e-3, "zamba2": 1e-2}
"""Their scan has a least time step, which transformers' step of a single token leaves out."""

# Of models whose modules compile or script something on their way.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

_DRAW = random.Random(0)
_ORDINARY = [i for i in range(2, tiny.VOCAB_SIZE) if i not in (tiny.OPEN_ID, tiny.CLOSE_ID)]


def _ids(num_tokens: int) -> tuple[int, ...]:
    return tuple(_DRAW.choices(_ORDINARY, k=num_tokens))


BRIDGE_IDS = (*_ids(1), tiny.OPEN_ID)
DOCUMENT = _ids(34)  # longer than every window, and past the boundary of the longrope models
OTHER = DOCUMENT[:9] + _ids(20)
THOUGHTS = [_ids(n) for n in (1, 7, 4)]


def _after_thought(document: tuple[int, ...], index: int, thought: tuple[int, ...]) -> Continuation:
    prefix_ids = document[:index] + BRIDGE_IDS + thought + (tiny.CLOSE_ID,)
    return Continuation(prefix_ids, document[index : index + 2])


def _queries() -> list[Continuation]:
    """Three positions of one document and two of another that begins like it, with and without thoughts."""
    places = [(DOCUMENT, 2), (DOCUMENT, 13), (DOCUMENT, 32), (OTHER, 5), (OTHER, 20)]
    thinking = [_after_thought(*place, thought) for place in places for thought in THOUGHTS]
    plain = [Continuation(d[:i], d[i : i + 2], tiny.OPEN_ID) for d, i in places]
    others = [
        thinking[4],  # again
        Continuation(DOCUMENT[:1], DOCUMENT[1:]),  # one token before, the document itself after it
        Continuation(DOCUMENT[:20], DOCUMENT[20:22]),  # the same rows as without a thought
        Continuation(DOCUMENT[:20], DOCUMENT[20:21]),
        Continuation(_ids(11), _ids(3)),  # shares nothing
        Continuation(_ids(1), _ids(1)),
        Continuation(_ids(tiny.MAX_LENGTH_TOKENS - 3), _ids(3)),  # no longer row exists
    ]
    queries = thinking + plain + others
    return random.Random(1).sample(queries, len(queries))


QUERIES = _queries()
TARGET = TargetText(_ids(1), (tiny.CLOSE_ID, *_ids(1)), _ids(2))
REQUESTS = [
    SampleRequest(
        DOCUMENT[:2] + BRIDGE_IDS, (1, 2, 3), 5, 1.0, tuple(range(0, 256, 5)), target=TARGET
    ),
    SampleRequest(DOCUMENT[:30] + BRIDGE_IDS, (4, 5), 6, 0.7, (), 2),
    SampleRequest(OTHER[:12] + BRIDGE_IDS, (6, 7), 4, 1.3, tuple(range(0, 256, 2)), 3, (7, 9)),
    SampleRequest(DOCUMENT[:30] + BRIDGE_IDS, (4, 8), 6, 0.7, ()),
    SampleRequest(
        OTHER[:12] + BRIDGE_IDS, (9, 10, 11), 3, 0.8, tuple(range(0, 256, 3)), target=TARGET
    ),
    SampleRequest(OTHER[:20], (12, 13), 5, 1.0, tuple(range(0, 256, 2)), min_tokens=4),
]


@pytest.fixture(scope="module", params=architectures.EVERY)
def name(request: pytest.FixtureRequest) -> str:
    given: str = request.param
    return given


@pytest.fixture(scope="module")
def language_model(name: str) -> LanguageModel:
    return architectures.prepared(name)


def test_scores_are_those_of_separate_rows(language_model: LanguageModel) -> None:
    model = language_model.model
    found = score_continuations(model, QUERIES, BATCH_TOKENS)
    assert len(found) == len(QUERIES)
    for query, scored in zip(QUERIES, found, strict=True):
        expected = separate_rows.score(model, query)
        assert scored.logprobs_H == pytest.approx(expected.logprobs_H, abs=TOLERANCE_NATS)
        assert scored.greedy_H == expected.greedy_H


ROWS_APART = {
    "bloom", "deepseek_v32", "doge", "falcon", "falcon/alibi", "gpt_neo", "gpt_neox_japanese",
    "llama4_text", "mpt", "openai-gpt", "xglm", *architectures.HYBRIDS, *architectures.BY_RELEASE,
    *architectures.UNSAMPLED, *architectures.UNPADDED, *architectures.MIXED,
}  # fmt: skip
"""Their attention has biases, masks or positions of its own, or layers are recurrent."""
APART_IN_SOME_RELEASES = {"codegen", "gptj"}


def test_what_rows_share_is_computed_once(name: str, language_model: LanguageModel) -> None:
    form = forms_of(language_model.model).rows
    if name not in APART_IN_SOME_RELEASES:
        assert (form == "trees") == (name not in ROWS_APART)


def without_a_tree_mask(patch: pytest.MonkeyPatch) -> None:
    """Causal attention over the packed row."""
    patch.setattr(token_logprobs, "attending_trees", lambda *_: nullcontext())


def with_places_as_positions(patch: pytest.MonkeyPatch) -> None:
    def layout(*given: Any) -> TreeLayout:
        laid = layout_of(*given)
        places = torch.arange(laid.input_ids.shape[1])[None]
        return replace(laid, position_ids=places.clamp_max(tiny.MAX_LENGTH_TOKENS - 1))

    patch.setattr(packing, "layout_of", layout)


def with_branches_that_see_the_whole_trunk(patch: pytest.MonkeyPatch) -> None:
    def layout(*given: Any) -> TreeLayout:
        laid = layout_of(*given)
        ends_S = laid.visible_keys.trunk_end_S.clone()
        for group in laid.groups:
            places = laid.branch_Q[group.start : group.end]
            ends_S[places] = group.trunk.start + group.trunk.length
        return replace(
            laid,
            groups=tuple(replace(group, index=group.trunk.length) for group in laid.groups),
            visible_keys=replace(laid.visible_keys, trunk_end_S=ends_S),
        )

    patch.setattr(packing, "layout_of", layout)


def without_windows(patch: pytest.MonkeyPatch) -> None:
    made = TreeMask.__init__

    def causal(_: Any, __: Any, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        return queries >= keys

    patch.setattr(
        TreeMask, "__init__", lambda mask, layout, _, dtype: made(mask, layout, causal, dtype)
    )


MISTAKES = [
    without_a_tree_mask,
    with_places_as_positions,
    with_branches_that_see_the_whole_trunk,
    without_windows,
]
WINDOWED = ["mistral", "gemma2", "gemma3_text", "gpt_oss"]


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe", "deepseek_v3", *WINDOWED])
def test_a_mistake_shows_and_is_found_at_load(
    name: str, mistake: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative controls of the comparisons here, and of the check that chooses a model's form."""
    if mistake is without_windows and name not in WINDOWED:
        pytest.skip("has no window")
    model = architectures.prepared(name).model
    mistake(monkeypatch)
    errors = [
        abs(a - b)
        for query, scored in zip(
            QUERIES, score_continuations(model, QUERIES, BATCH_TOKENS), strict=True
        )
        for a, b in zip(
            scored.logprobs_H, separate_rows.score(model, query).logprobs_H, strict=True
        )
    ]
    assert max(errors) > 1000 * TOLERANCE_NATS
    assert architectures.prepared(name).consistency.sharing_fault


def test_samples_are_those_of_separate_rows(name: str, language_model: LanguageModel) -> None:
    model, tolerance = language_model.model, DECODING_ERRORS_NATS.get(name, TOLERANCE_NATS)
    longest = max(len(r.prefix_ids) + r.max_length for r in REQUESTS)
    if fault := language_model.consistency.sampling_fault(longest):
        pytest.skip(fault)
    found = sample_within(model, REQUESTS, BATCH_TOKENS)
    for request, drawn_G in zip(REQUESTS, found, strict=True):
        for seed, drawn in zip(request.seeds_G, drawn_G, strict=True):
            expected = separate_rows.redrawn(model, request, seed, drawn)
            assert drawn.token_ids_L == expected.token_ids_L
            assert drawn.logprobs_L == pytest.approx(expected.logprobs_L, abs=tolerance)
            assert (drawn.stopped, drawn.num_prediction_tokens) == (
                expected.stopped,
                expected.num_prediction_tokens,
            )
            targets = _target_logprobs(model, request, drawn)
            assert drawn.target_logprobs_H == pytest.approx(targets, abs=tolerance)


def _target_logprobs(model: Any, request: SampleRequest, drawn: Sample) -> tuple[float, ...]:
    """Of the requested target after a sample, in a row of its own."""
    if request.target is None:
        return ()
    before = request.target.after_stop_ids if drawn.stopped else request.target.after_budget_ids
    prefix_ids = request.prefix_ids + drawn.token_ids_L + before
    return separate_rows.score(
        model, Continuation(prefix_ids, request.target.target_ids_H)
    ).logprobs_H
