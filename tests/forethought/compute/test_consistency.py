"""One function: a row alone, padded and decoded, over architectures."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from forethought import objectives
from forethought.compute.answers import Query, answer_queries
from forethought.compute.consistency import Consistency, rotary_boundary
from forethought.compute.entropy import EntropyQuery, entropies
from forethought.compute.finite import not_finite
from forethought.compute.forms import NO_LIMIT, Forms, forms_of, note_forms
from forethought.compute.logprob import Continuation, score_continuations
from forethought.compute.model import (
    LanguageModel,
    choose_forms,
    load_language_model,
    model_length,
)
from forethought.compute.policy import check_length
from forethought.compute.sampling import SampleRequest, sample
from forethought.config import load_settings
from forethought.errors import InvalidInput
from forethought.types import Document, Position, Prompting, Sampling
from tests import architectures, tiny

AGREEING = {**architectures.ATTENTION, **architectures.HYBRIDS}
CACHED = {*architectures.HYBRIDS, "bloom", "mpt"} - {"jamba"}
"""Of them, those with recurrent layers or attention code of their own, which continue a cached prefix."""
IDS = range(1, 200)
PROMPTING = Prompting(bridge_ids=(tiny.OPEN_ID,), close_ids=(tiny.CLOSE_ID,))
UNSAMPLED = Consistency(decoding=None, decoding_fault="it fails with ValueError: no")

# Of models whose modules compile or script something on their way.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def measured(model: Any) -> Consistency:
    return choose_forms(model, IDS, model_length(model.config))


def loaded(directory: Path, name: str) -> LanguageModel:
    return load_language_model(architectures.build_directory(directory, name), "float32", "cpu")


def largest_sampling_error_nats(model: Any) -> float:
    """Of two prefixes, one of them padded, against passes over the whole rows."""
    requests = [
        SampleRequest(tuple(range(5, 35)), (1, 2), 9, 1.0, ()),
        SampleRequest((7, 3), (3, 4, 5), 4, 1.0, (12, 14, 19)),
    ]
    errors = []
    for request, drawn_G in zip(requests, sample(model, requests), strict=True):
        for drawn in drawn_G:
            whole = Continuation(request.prefix_ids, drawn.token_ids_L)
            (scored,) = score_continuations(model, [whole], 1)
            pairs = zip(drawn.logprobs_L, scored.logprobs_H, strict=True)
            errors += [abs(sampled - expected) for sampled, expected in pairs]
    return max(errors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", AGREEING)
def test_models_whose_passes_agree_are_not_limited(name: str, dtype: torch.dtype) -> None:
    """Experts, sliding windows, absolute positions, ALiBi, latent attention, recurrent layers."""
    found = measured(architectures.build(name, dtype))
    fault = found.sharing_fault
    is_shared = name not in CACHED | {"jamba"}
    assert found == Consistency(
        sharing_fault=fault,
        prefix_fault=found.prefix_fault,
        decoding="trees" if is_shared else "cache",
        decoding_fault=fault,
    )
    expected = "cached" if name in CACHED else "padded" if name == "jamba" else "trees"
    assert found.forms.rows == expected


def test_rounding_of_many_layers_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """6 % between kernels, and nothing between a row and the beginning of a longer one."""
    deep = architectures.EVERY["llama"] | {"num_hidden_layers": 32, "initializer_range": 0.3}
    monkeypatch.setitem(architectures.EVERY, "llama/deep", deep)
    assert measured(architectures.build("llama/deep", torch.bfloat16)) == Consistency()


@pytest.mark.parametrize("name", AGREEING)
def test_samples_have_the_log_probs_of_a_pass_over_the_whole_row(name: str) -> None:
    """Two prefixes, one padded; groups of a size; one sample ends before the others.

    Recurrent layers of a cache have no ``batch_select_indices``.
    """
    assert largest_sampling_error_nats(architectures.build(name)) < 2e-3


def test_soft_caps_on_attention_scores_count() -> None:
    """Some releases of transformers choose SDPA for such a model, which ignores them."""
    model, ids = architectures.prepared("gemma2").model, torch.arange(1, 30)[None]
    with torch.no_grad():
        capped = model(input_ids=ids).logits
        for layer in model.model.layers:
            layer.self_attn.attn_logit_softcapping = None
        assert not torch.allclose(model(input_ids=ids).logits, capped, atol=1e-2)


def test_attention_that_cannot_be_replaced_does_not_pass_for_rounding() -> None:
    """Sharing changes this model's log-probs by less than bfloat16 does."""
    found = measured(architectures.build("openai-gpt", torch.bfloat16))
    assert "TypeError: this model" in found.sharing_fault
    assert "attention" in found.sharing_fault


@pytest.mark.parametrize("name", architectures.BY_RELEASE)
def test_a_cache_that_some_releases_misuse_is_found_where_it_is(name: str) -> None:
    model = architectures.build(name)
    note_forms(model, measured(model).forms)
    assert largest_sampling_error_nats(model) <= 2e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", architectures.UNSAMPLED | architectures.UNPADDED)
def test_a_model_whose_cache_is_ignored_or_foreign_is_sampled_without(
    name: str, dtype: torch.dtype
) -> None:
    if name == "xlstm" and dtype is torch.bfloat16:
        with pytest.raises(InvalidInput, match=r"xLSTM\w+ does not compute a row .*RuntimeError"):
            measured(architectures.build(name, dtype))
        return
    model = architectures.build(name, dtype)
    found = measured(model)
    assert found.forms.rows == "padded"
    assert found.sampling_fault(10**6) is None
    if dtype is torch.float32:  # rounding in bfloat16 is as large as the fault of one of them
        assert found.decoding == "recompute"
        assert found.is_harmful
        assert any("sampled slowly" in note for note in found.notes())
    note_forms(model, found.forms)
    assert largest_sampling_error_nats(model) < (1e-5 if dtype is torch.float32 else 0.2)


@pytest.mark.parametrize("name", architectures.UNPADDED | architectures.LONGROPE)
def test_an_item_scores_the_same_alone_and_beside_a_long_one(name: str, tmp_path: Path) -> None:
    model = loaded(tmp_path, name).model
    short, long = Continuation((5, 6, 7, 8), (9, 10)), Continuation(tuple(range(60)), (3,))
    (alone,) = score_continuations(model, [short], 10_000)
    beside = score_continuations(model, [long, short], 10_000)[1]
    assert beside.logprobs_H == pytest.approx(alone.logprobs_H, abs=1e-5)
    queries = [EntropyQuery(ids, 16, renormalise=True) for ids in ((5, 6, 7), tuple(range(60)))]
    (lone,) = entropies(model, queries[:1], 10_000)
    assert entropies(model, queries, 10_000)[0] == pytest.approx(lone, abs=1e-5)


@pytest.mark.parametrize("name", architectures.LONGROPE)
def test_rotary_frequencies_that_change_limit_padding_and_sampling(
    name: str, tmp_path: Path
) -> None:
    language_model = loaded(tmp_path, name)
    found = language_model.consistency
    assert found == Consistency(boundary_tokens=architectures.BOUNDARY_TOKENS)
    assert forms_of(language_model.model) == Forms("trees", "trees", architectures.BOUNDARY_TOKENS)
    assert found.sampling_fault(24) is None
    assert "change beyond 24" in (found.sampling_fault(25) or "")
    shorter = load_language_model(tmp_path, "float32", "cpu", 24)
    assert shorter.consistency == Consistency()  # no row can cross it


@pytest.mark.parametrize("engine", ["torch", "vllm"])
def test_a_run_whose_thoughts_cross_the_boundary_is_refused(engine: str, tmp_path: Path) -> None:
    """16 of window, 2 of markers and 6 of thought are 24 tokens."""
    language_model, rlp = loaded(tmp_path, "phi3"), objectives.load("rlp")
    prompting = rlp.prompting((tiny.OPEN_ID,), (tiny.CLOSE_ID,))
    words = (f"rollout.engine={engine}", "corpus.window_tokens=16", "sampling.max_thought_tokens=6")
    check_length(load_settings(None, words, {}), rlp, language_model, prompting)
    settings = load_settings(None, (*words[:2], "sampling.max_thought_tokens=7"), {})
    with pytest.raises(InvalidInput, match=r"up to 25 tokens .* change beyond 24.*lower corpus"):
        check_length(settings, rlp, language_model, prompting)


@pytest.mark.parametrize("engine", ["torch", "vllm"])
def test_a_model_without_an_exact_form_of_decoding_is_refused_where_the_torch_engine_samples(
    engine: str, tmp_path: Path
) -> None:
    language_model = loaded(tmp_path, "llama")
    language_model.consistency = UNSAMPLED
    settings = load_settings(None, (f"rollout.engine={engine}", "corpus.window_tokens=16"), {})
    rlp, ntp = objectives.load("rlp"), objectives.load("ntp")
    check_length(settings, ntp, language_model, None)  # no thoughts, no sampling
    if engine == "vllm":
        check_length(settings, rlp, language_model, PROMPTING)
        return
    with pytest.raises(InvalidInput, match=r"cannot sample from this model.*rollout\.engine=vllm"):
        check_length(settings, rlp, language_model, PROMPTING)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (UNSAMPLED, "cannot sample"),
        (Consistency(boundary_tokens=24), "rows of up to 32 tokens"),
    ],
)
def test_evaluation_refuses_what_it_cannot_sample(
    found: Consistency, words: str, tmp_path: Path
) -> None:
    language_model = loaded(tmp_path, "llama")
    language_model.consistency = found
    document = Document("a", "s", tuple(range(1, 50)))
    query = Query(document, Position(22, (document.token_ids_N[22],)))
    sampling = Sampling(2, 9, 1.0, (tiny.CLOSE_ID,))
    with pytest.raises(InvalidInput, match=words):
        answer_queries(language_model, [query], PROMPTING, sampling)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["lm_head.weight", "model.embed_tokens.weight"])
def test_weights_that_are_not_finite_are_named_not_compared(name: str, bad: float) -> None:
    """Of the embedding, too, whose row may be of a token that the check does not draw."""
    model = architectures.build("llama")
    with torch.no_grad():
        model.get_parameter(name)[-1, 0] = bad
    found = measured(model)
    assert found == Consistency(weights_fault=found.weights_fault)
    assert f"{name} holds NaN or an infinity" in found.weights_fault
    assert list(found.notes()) == [found.weights_fault]


def test_weights_whose_sum_overflows_are_finite() -> None:
    model = architectures.build("llama")
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.finfo(torch.float32).max)
    assert not not_finite(model)


def test_the_check_draws_nothing_from_the_global_generator() -> None:
    model = architectures.build("llama")
    torch.manual_seed(3)
    measured(model)
    found = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(found, torch.rand(1))


LONGROPE = {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}


@pytest.mark.parametrize(
    ("config", "boundary"),
    [
        ({}, NO_LIMIT),
        ({"rope_parameters": None}, NO_LIMIT),
        ({"rope_parameters": {"rope_type": "yarn", "original_max_position_embeddings": 9}}, NO_LIMIT),
        ({"rope_parameters": LONGROPE | {"original_max_position_embeddings": 4096}}, 4096),
        (
            {
                "rope_parameters": LONGROPE
                | {"original_max_position_embeddings": 9, "long_factor": [1.0]}
            },
            NO_LIMIT,  # both sets of factors are the same
        ),
        (
            {"rope_parameters": {"rope_type": "dynamic"}, "max_position_embeddings": 2048},
            2048,
        ),
        (
            {
                "rope_parameters": {
                    "full_attention": LONGROPE | {"original_max_position_embeddings": 64},
                    "sliding_attention": {"rope_type": "default"},
                }
            },
            64,
        ),
    ],
)  # fmt: skip
def test_the_boundary_of_a_configuration(config: dict[str, Any], boundary: int) -> None:
    assert rotary_boundary(SimpleNamespace(**config)) == boundary


def test_notes_name_every_difference_once() -> None:
    assert list(Consistency().notes()) == []
    every = Consistency("by 9 %", "by 8 %", "by 7 %", None, "it fails", 4096)
    sharing, padding, decoding, boundary = every.notes()
    assert "as trees changes log-probs (by 8 %)" in sharing
    assert "as with a cache (by 7 %)" in sharing
    assert "padding changes log-probs (by 9 %)" in padding
    assert "cannot sample, no form of decoding agrees" in decoding
    assert "beyond 4096 tokens" in boundary
