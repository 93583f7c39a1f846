"""Decoding with trees: the samples of separate rows, whatever a batch is made of."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch

from forethought.compute.decoding import attention, decoding, plan, tree_decoder
from forethought.compute.decoding.decoder import Group
from forethought.compute.decoding.tree_decoder import TreeDecoder
from forethought.compute.sampling import Sample, SampleRequest, sample
from tests import architectures
from tests.forethought.compute import separate_rows

DOCUMENT = tuple(Random(1).choices(range(1, 200), k=60))
STOPS = tuple(range(0, 200, 9))


def request(
    prefix: tuple[int, ...], num_samples: int, max_tokens: int, **others: Any
) -> SampleRequest:
    seed = 1000 * len(prefix) + prefix[-1]
    given: dict[str, Any] = {"temperature": 1.0, "stop_ids": STOPS} | others
    return SampleRequest(prefix, tuple(range(seed, seed + num_samples)), max_tokens, **given)


def short_documents() -> list[SampleRequest]:
    rng = Random(2)
    return [
        request(tuple(rng.choices(range(1, 200), k=12 + i % 3)), 2 + i % 2, 7) for i in range(6)
    ]


REQUESTS = [
    request((*DOCUMENT[:10], 7), 4, 9),
    request((*DOCUMENT[:20], 7, 8), 3, 9, prediction_tokens=4, prediction_stop_ids=(3, 5)),
    request(DOCUMENT[:33], 5, 12, temperature=0.7),
    request(DOCUMENT[:33], 2, 5),
    request((*DOCUMENT, 7, 8, 9), 4, 7, stop_ids=()),
    request(DOCUMENT[:1], 3, 8),
    *short_documents(),
]
"""Ragged groups at six positions of a document, one of them a single token, and of short documents."""


def redrawn(model: Any, requests: list[SampleRequest], drawn: list[list[Sample]]) -> None:
    for given, drawn_G in zip(requests, drawn, strict=True):
        assert len(drawn_G) == len(given.seeds_G)
        for seed, found in zip(given.seeds_G, drawn_G, strict=True):
            expected = separate_rows.redrawn(model, given, seed, found)
            assert found.token_ids_L == expected.token_ids_L
            assert found.logprobs_L == pytest.approx(expected.logprobs_L, abs=1e-5)
            assert found.stopped == expected.stopped
            assert found.num_prediction_tokens == expected.num_prediction_tokens


@pytest.mark.parametrize("row_keys", [0, 30, 2048])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_oss", "deepseek_v3", "gpt2"])
def test_samples_are_those_of_separate_rows(
    name: str, row_keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows shorter than trunks, soft caps, sinks, wider keys than values; however rows are blocked."""
    monkeypatch.setattr("forethought.compute.decoding.blocks._SMALL", row_keys)
    monkeypatch.setattr(plan, "_BATCHED_ROW_KEYS", row_keys)
    monkeypatch.setattr(tree_decoder, "_PREFILL_TOKENS", 64)  # several passes
    model = architectures.build(name)
    redrawn(model, REQUESTS, sample(model, REQUESTS, form="trees"))


@pytest.mark.parametrize("form", ["cache", "unpadded", "recompute"])
def test_other_forms_draw_the_same(form: Any) -> None:
    model = architectures.build("llama")
    redrawn(model, REQUESTS, sample(model, REQUESTS, form=form))


def test_a_request_alone_draws_what_it_draws_beside_others() -> None:
    model = architectures.build("mistral")
    together = sample(model, REQUESTS, form="trees")
    for given, drawn in zip(REQUESTS, together, strict=True):
        (alone,) = sample(model, [given], form="trees")
        assert [one.token_ids_L for one in alone] == [one.token_ids_L for one in drawn]


@pytest.mark.parametrize("mistake", ["mask", "positions"])
def test_a_mistake_in_what_rows_see_changes_samples(
    mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative controls: rows that see all of a trunk, and rows at wrong positions."""
    model = architectures.build("llama")
    expected = sample(model, REQUESTS, form="trees")
    if mistake == "mask":
        monkeypatch.setattr(attention, "_additive", lambda allowed: torch.zeros(allowed.shape))
    else:
        logits_at = tree_decoder.logits_at
        monkeypatch.setattr(
            tree_decoder,
            "logits_at",
            lambda model, ids, positions, *rest: logits_at(model, ids, positions * 0, *rest),
        )
    assert sample(model, REQUESTS, form="trees") != expected


@torch.inference_mode()
def test_trunks_and_rows_are_dropped_with_their_last_row() -> None:
    model = architectures.build("llama")
    groups = [Group(r.prefix_ids, len(r.seeds_G), 4) for r in short_documents()]
    with decoding(model, groups, "trees") as decoder:
        assert isinstance(decoder, TreeDecoder)
        decoder.first_logits()
        before = decoder.trunk_bytes
        kept = [row for row, owner in enumerate(decoder.owners_R) if owner in (1, 4)]
        owners = [decoder.owners_R[row] for row in kept]
        decoder.keep(kept)
        assert decoder.owners_R == owners
        assert decoder.trunk_bytes * 3 == before
        assert decoder.next_logits(torch.arange(len(kept))).shape[0] == len(kept)


def test_a_model_with_attention_of_its_own_is_refused_and_left_as_it_was() -> None:
    model = architectures.build("bloom")
    before = model.config._attn_implementation
    with pytest.raises(TypeError, match="elsewhere"):
        sample(model, REQUESTS[:1], form="trees")
    assert model.config._attn_implementation == before
