"""A model with a BOS: every request is computed as its tokenizer encodes, whether text or token ids."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from forethought import objectives
from forethought.config import load_settings
from forethought.lab.demo.arms import base_model
from forethought.lab.demo.corpus import BOS, documents
from forethought.special_tokens import choose_bos
from services.reward.scoring import Scorer
from services.reward.service import Limits, RewardService
from services.reward.standalone import load_models
from tests.endpoints import ids_of, plain_logits, plain_logprobs
from tests.tiny import (
    BOS_ID,
    CLOSE_ID,
    OPEN_ID,
    THINK_CLOSE,
    THINK_OPEN,
    begin_with_bos,
    build_model_directory,
    serve,
)

CONTEXT, TARGET = "3+4=", "7."
CONTEXTS = {
    "text": {"context": CONTEXT},
    "text with BOS": {"context": "<eos>" + CONTEXT},
    "ids": {"context_ids": list(ids_of(CONTEXT))},
    "ids with BOS": {"context_ids": [BOS_ID, *ids_of(CONTEXT)]},
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return begin_with_bos(build_model_directory(tmp_path_factory.mktemp("bos")))


def service_of(served: Any) -> RewardService:
    return RewardService(
        Scorer(served, None, max_batch_tokens=4096),
        {"rlp": objectives.load("rlp")},
        think_open=THINK_OPEN,
        think_close=THINK_CLOSE,
        limits=Limits(max_batch_tokens=4096),
    )


@pytest.fixture
def service(directory: Path) -> RewardService:
    return service_of(serve(directory, "policy"))


@pytest.mark.parametrize("given", CONTEXTS.values(), ids=CONTEXTS.keys())
def test_both_branches_of_a_group_begin_with_one_bos(
    service: RewardService, directory: Path, given: dict[str, Any]
) -> None:
    item = {**given, "target": TARGET, "thoughts": ["ab", ""]}
    (scored,) = asyncio.run(service.score("rlp", [item]))["items"]
    before = (BOS_ID, *ids_of(CONTEXT))
    thinking = plain_logprobs(
        directory, (*before, OPEN_ID, *ids_of("ab"), CLOSE_ID), ids_of(TARGET)
    )
    plain = plain_logprobs(directory, before, ids_of(TARGET), removed_id=OPEN_ID)
    assert scored["rewards"][0] == pytest.approx(sum(thinking) - sum(plain), abs=1e-4)
    assert scored["baseline_logprob"] == pytest.approx(sum(plain), abs=1e-4)


@pytest.mark.parametrize("name", CONTEXTS)
def test_log_probs_and_entropies_follow_one_bos(
    service: RewardService, directory: Path, name: str
) -> None:
    given = {key.replace("context", "prefix"): value for key, value in CONTEXTS[name].items()}
    reply = asyncio.run(service.logprobs("policy", [TARGET], **given))
    before = (BOS_ID, *ids_of(CONTEXT))
    expected = plain_logprobs(directory, before, ids_of(TARGET))
    assert reply["continuations"][0]["logprobs"] == pytest.approx(expected, abs=1e-4)

    keys = {"context": "text", "context_ids": "token_ids"}
    found = asyncio.run(
        service.entropy(**{keys[key]: value for key, value in CONTEXTS[name].items()}, top_k=300)
    )
    p = plain_logits(directory, before).softmax(dim=-1)
    entropies = (-(p * p.log()).sum(dim=-1)).tolist()
    has_bos = name.endswith("BOS")
    assert found["entropies"] == pytest.approx(entropies[0 if has_bos else 1 : -1], abs=1e-4)
    assert len(found["entropies"]) == len(found["token_ids"]) - found["first_position"]


def test_a_context_may_be_the_bos_alone(service: RewardService, directory: Path) -> None:
    item = {"context_ids": [BOS_ID], "target": TARGET, "thoughts": ["a", "b"]}
    (scored,) = asyncio.run(service.score("rlp", [item]))["items"]
    plain = plain_logprobs(directory, (BOS_ID,), ids_of(TARGET), removed_id=OPEN_ID)
    assert scored["baseline_logprob"] == pytest.approx(sum(plain), abs=1e-4)


@pytest.mark.parametrize(
    ("bos", "begins"), [("tokenizer", True), ("always", True), ("never", False)]
)
def test_a_standalone_service_follows_its_setting(
    directory: Path, tmp_path: Path, bos: str, begins: bool
) -> None:
    words = [f"reward.policy_path={directory}", f"model.bos={bos}"]
    settings = load_settings(None, words, {})
    served = serve(directory, "policy")
    scorer = Scorer(served, None, max_batch_tokens=4096)
    load_models(settings, scorer)
    service = service_of(served)
    reply = asyncio.run(service.logprobs("policy", [TARGET], prefix=CONTEXT))
    before = (*((BOS_ID,) if begins else ()), *ids_of(CONTEXT))
    expected = plain_logprobs(directory, before, ids_of(TARGET))
    assert reply["continuations"][0]["logprobs"] == pytest.approx(expected, abs=1e-4)


def test_the_demos_base_with_a_bos_is_scored_as_its_tokenizer_encodes(tmp_path: Path) -> None:
    """Trained behind ``<s>``, it takes 5 nats a token for plain text without it and 1.4 with it."""
    directory = Path(shutil.copytree(base_model(), tmp_path / "base"))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    choose_bos(tokenizer, "always")
    tokenizer.save_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    service = service_of(serve(directory, "policy"))
    texts = [d.text.removeprefix(f"{BOS} ") for d in documents(8, seed=0, heldout=True)]

    def by_transformers(text: str, first: int) -> float:
        ids = torch.tensor([AutoTokenizer.from_pretrained(directory)(text)["input_ids"][first:]])
        with torch.no_grad():
            logprobs = model(ids).logits[0].log_softmax(-1)
        return -sum(float(logprobs[i, ids[0, i + 1]]) for i in range(1 - first, ids.shape[1] - 1))

    def by_service(text: str) -> float:
        word, _, rest = text.partition(" ")
        reply = asyncio.run(service.logprobs("policy", [rest], prefix=word))
        return -float(reply["continuations"][0]["logprob"])

    num_tokens = sum(len(text.split()) - 1 for text in texts)
    encoded, bare = (sum(by_transformers(t, first) for t in texts) / num_tokens for first in (0, 1))
    served = sum(map(by_service, texts)) / num_tokens
    assert served == pytest.approx(encoded, abs=1e-4)
    assert served < 2 < 4 < bare
