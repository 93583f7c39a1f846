"""The scorer core against naive reference computations."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from transformers.modeling_outputs import CausalLMOutput

from forethought.compute.model import LanguageModel
from forethought.compute.served_model import ServedModel, Serving
from forethought.errors import ForethoughtError, InvalidInput, NotReady
from forethought.objectives import Objective
from forethought.types import (
    Document,
    Position,
    Prompting,
    Rollout,
    Sampling,
    ScoredRollout,
    Task,
    Thought,
    VersionSpan,
)
from services.reward.groups import GroupLikelihoods, GroupQuery
from services.reward.scoring import Scorer, rewards_of
from tests.tiny import (
    CLOSE_ID,
    MAX_LENGTH_TOKENS,
    NUM_BYTES,
    OPEN_ID,
    VOCAB_SIZE,
    Kind,
    build_model_directory,
    manifest,
    serve,
)

PROMPTING = Prompting(
    head_ids=(1, 2, 3),
    bridge_ids=(4, 5, OPEN_ID),
    close_ids=(CLOSE_ID, 6, 7),
    no_think_head_ids=(8, 9),
)
PLAIN = Prompting(bridge_ids=(OPEN_ID,), close_ids=(CLOSE_ID,))


def text_ids(rng: Random, num_tokens: int) -> tuple[int, ...]:
    return tuple(rng.randrange(NUM_BYTES) for _ in range(num_tokens))


def random_query(
    seed: int, num_target: int = 1, group_size: int = 4, prompting: Prompting = PROMPTING
) -> GroupQuery:
    """Lengths vary; half of the thoughts are truncated."""
    rng = Random(seed)
    thoughts = []
    for index in range(group_size):
        closed = index % 2 == 0
        ids = text_ids(rng, rng.randint(0 if closed else 1, 9)) + ((CLOSE_ID,) if closed else ())
        thoughts.append(Thought(ids, (), (VersionSpan(0, len(ids)),), closed))
    context, target = text_ids(rng, rng.randint(1, 24)), text_ids(rng, num_target)
    return GroupQuery(context, target, prompting, tuple(thoughts))


def make_rollout(query: GroupQuery, *, num_positions: int = 1, **changes: Any) -> Rollout:
    """The same query as ``num_positions`` positions of one task."""
    document = Document("d#0", "d", query.context_ids_N + query.target_ids_H)
    position = Position(len(query.context_ids_N), query.target_ids_H)
    task = Task(
        task_id=7,
        epoch=1,
        batch=0,
        min_version=0,
        objective="rlp",
        objective_json="{}",
        document=document,
        positions_K=(position,) * num_positions,
        prompting=query.prompting,
        sampling=Sampling(len(query.thoughts_G), 9, 1.0, (CLOSE_ID,)),
        seed=3,
    )
    return Rollout(replace(task, **changes), (query.thoughts_G,) * num_positions, "rollout-a")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def models(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ServedModel, ServedModel]:
    """Policy at version 0 and a different baseline at version 5."""
    kind: Kind = request.param
    directories = [
        build_model_directory(tmp_path_factory.mktemp(kind), kind, seed) for seed in (1, 2)
    ]
    return serve(directories[0], "policy"), serve(directories[1], "baseline", version=5)


@pytest.fixture
def scorer(models: tuple[ServedModel, ServedModel]) -> Scorer:
    return Scorer(*models, max_batch_tokens=400, objectives={"rlp"}, replica="reward-b")


@torch.inference_mode()
def naive_logprob(model: Any, prefix_ids: tuple[int, ...], target_ids: tuple[int, ...]) -> float:
    """log p(target | prefix), one target token and one unpadded forward pass at a time."""
    total, ids = 0.0, list(prefix_ids)
    for target_id in target_ids:
        logits = model(torch.tensor([ids])).logits[0, -1]
        total += torch.log_softmax(logits.double(), -1)[target_id].item()
        ids.append(target_id)
    return total


@torch.inference_mode()
def naive_logprob_without(
    model: Any, prefix_ids: tuple[int, ...], target_ids: tuple[int, ...], removed_id: int
) -> float:
    """The same with ``removed_id`` masked: p(x) / (1 - p(removed))."""
    total, ids = 0.0, list(prefix_ids)
    for target_id in target_ids:
        probs = torch.softmax(model(torch.tensor([ids])).logits[0, -1].double(), -1)
        total += math.log(probs[target_id].item() / (1 - probs[removed_id].item()))
        ids.append(target_id)
    return total


def naive_likelihoods(policy: Any, baseline: Any, query: GroupQuery) -> tuple[list[float], float]:
    head, bridge = list(query.prompting.head_ids), list(query.prompting.bridge_ids)
    policy_logprobs = []
    for thought in query.thoughts_G:
        text = [i for i in thought.token_ids_L if i != CLOSE_ID]
        prefix = head + list(query.context_ids_N) + bridge + text + list(query.prompting.close_ids)
        policy_logprobs.append(naive_logprob(policy, tuple(prefix), query.target_ids_H))
    prefix_ids = query.prompting.no_think_head_ids + query.context_ids_N
    return policy_logprobs, naive_logprob_without(
        baseline, prefix_ids, query.target_ids_H, query.prompting.open_id
    )


def model_of(served: ServedModel) -> Any:
    with served.hold() as serving:
        return serving.language_model.model


@pytest.mark.parametrize("num_target", [1, 3])
@pytest.mark.parametrize("prompting", [PROMPTING, PLAIN], ids=["several-tokens", "plain"])
def test_rewards_equal_a_naive_computation(
    scorer: Scorer,
    models: tuple[ServedModel, ServedModel],
    num_target: int,
    prompting: Prompting,
) -> None:
    queries = [random_query(seed, num_target, prompting=prompting) for seed in range(8)]
    results = scorer.score_rollouts([make_rollout(query) for query in queries])

    for query, result in zip(queries, results, strict=True):
        policy_logprobs, baseline_logprob = naive_likelihoods(*map(model_of, models), query)
        assert result.failure is None
        assert result.policy_logprobs_KG[0] == pytest.approx(policy_logprobs, abs=1e-5)
        assert result.baseline_logprobs_K[0] == pytest.approx(baseline_logprob, abs=1e-5)
        rewards = [logprob - baseline_logprob for logprob in policy_logprobs]
        assert result.rewards_KG[0] == pytest.approx(rewards, abs=1e-5)
        assert (
            max(rewards) - min(rewards) > 0.01
        )  # the thoughts make a difference, so the test can fail
        assert (result.policy_version, result.baseline_version) == (0, 5)
        assert result.replica == "reward-b"


@pytest.mark.parametrize("sampled_by", [0, 1])
def test_what_the_sampler_handed_on_counts_if_the_scorer_would_compute_the_same(
    models: tuple[ServedModel, ServedModel], sampled_by: int, tmp_path: Path
) -> None:
    """By the served version 1 it is used as it is; by an older one it is computed."""
    policy = serve(build_model_directory(tmp_path, seed=1), "policy", version=1)
    scorer = Scorer(policy, models[1], 400, objectives={"rlp"})
    query = random_query(3, num_target=2)
    spans = (VersionSpan(sampled_by, 1),)
    thoughts_G = [
        replace(one, version_spans=spans, target_logprobs_H=(-0.5, -g))
        for g, one in enumerate(query.thoughts_G)
    ]

    def scored(*thoughts_G: Thought) -> ScoredRollout:
        rollout = make_rollout(replace(query, thoughts_G=thoughts_G), max_staleness=1)
        (result,) = scorer.score_rollouts([rollout])
        assert result.failure is None
        return result

    expected, baseline_logprob = naive_likelihoods(*map(model_of, (policy, models[1])), query)
    handed_on = [-0.5, -1.5, -2.5, -3.5]
    found = scored(*thoughts_G)
    wanted = handed_on if sampled_by == 1 else expected
    assert found.policy_logprobs_KG[0] == pytest.approx(wanted, abs=1e-5)
    rewards = [logprob - baseline_logprob for logprob in wanted]
    assert found.rewards_KG[0] == pytest.approx(rewards, abs=1e-5)
    some = scored(*thoughts_G[:-1], replace(thoughts_G[-1], target_logprobs_H=()))
    assert some.policy_logprobs_KG[0] == pytest.approx(expected, abs=1e-5)


def test_a_score_does_not_depend_on_its_batch(models: tuple[ServedModel, ServedModel]) -> None:
    queries = [random_query(seed, num_target=1 + seed % 3) for seed in range(12)]
    alone = Scorer(*models, max_batch_tokens=1)
    together = Scorer(*models, max_batch_tokens=1 << 20)
    one_by_one = Scorer(*models, max_batch_tokens=1 << 20, deterministic=True)

    expected = [answer for query in queries for answer in alone.score_groups([query])]
    for scorer, asked in ((together, queries), (together, queries[3:5]), (one_by_one, queries)):
        for query, got in zip(asked, scorer.score_groups(asked), strict=True):
            want = expected[queries.index(query)]
            assert isinstance(got, GroupLikelihoods)
            assert isinstance(want, GroupLikelihoods)
            assert got.policy_logprobs_G == pytest.approx(want.policy_logprobs_G, abs=1e-5)
            assert got.baseline_logprob == pytest.approx(want.baseline_logprob, abs=1e-5)


def test_deterministic_mode_is_bitwise_independent_of_the_batch(
    models: tuple[ServedModel, ServedModel],
) -> None:
    scorer = Scorer(*models, max_batch_tokens=1 << 20, deterministic=True, objectives={"rlp"})
    rollouts = [make_rollout(random_query(seed), num_positions=2) for seed in range(5)]

    together = scorer.score_rollouts(rollouts)

    assert together == [scorer.score_rollouts([rollout])[0] for rollout in rollouts]
    queries = [random_query(seed) for seed in range(5)]
    assert scorer.score_groups(queries) == [scorer.score_groups([q])[0] for q in queries]


class Bigram(torch.nn.Module):
    """log p(next | last token) from a table: a causal LM whose probabilities a test chooses."""

    def __init__(self, probs_VV: torch.Tensor) -> None:
        super().__init__()
        self.table = torch.nn.Embedding.from_pretrained(probs_VV.log())

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.table

    def forward(self, input_ids: torch.Tensor, **_: Any) -> CausalLMOutput:
        return CausalLMOutput(logits=self.table(input_ids))


class Held(ServedModel):
    """A served model whose module does not come from a directory."""

    def __init__(self, model: torch.nn.Module, name: str = "policy") -> None:
        super().__init__(name, "cpu")
        self._serving = Serving(LanguageModel(model, None, MAX_LENGTH_TOKENS), manifest(name))


def test_the_think_open_tokens_mass_earns_nothing() -> None:
    """After the context p(open) = 0.6 and p(target) = 0.2; after the close p(target) = 0.2 / 0.4."""
    word, target, open_id, close_id = 0, 1, 2, 3
    probs_VV = torch.tensor(
        [
            [0.1, 0.2, 0.6, 0.1],
            [0.25, 0.25, 0.25, 0.25],
            [0.25, 0.25, 0.25, 0.25],
            [0.25, 0.5, 1e-9, 0.25],
        ]
    )
    thoughts = (Thought((close_id,), (), (), True), Thought((word,), (), (), False))
    query = GroupQuery((word,), (target,), Prompting((), (open_id,), (close_id,)), thoughts)

    [answer] = Scorer(Held(Bigram(probs_VV)), None, 100).score_groups([query])

    assert isinstance(answer, GroupLikelihoods)
    assert answer.baseline_logprob == pytest.approx(math.log(0.5), abs=1e-6)  # not log 0.2
    rewards = [logprob - answer.baseline_logprob for logprob in answer.policy_logprobs_G]
    assert rewards == pytest.approx([0.0, 0.0], abs=1e-6)  # an empty thought earns 0


def test_without_a_baseline_the_policy_scores_the_no_think_branch(
    models: tuple[ServedModel, ServedModel],
) -> None:
    policy = models[0]
    query = random_query(1)
    [current] = Scorer(policy, None, 400).score_groups([query])
    waiting = Scorer(policy, ServedModel("baseline", "cpu"), 400)

    assert waiting.score_groups([query]) == [current]
    assert Scorer(policy, policy, 400).score_groups([query]) == [current]
    assert isinstance(current, GroupLikelihoods)
    assert current.baseline_version == current.policy_version == 0
    _, baseline_logprob = naive_likelihoods(model_of(policy), model_of(policy), query)
    assert current.baseline_logprob == pytest.approx(baseline_logprob, abs=1e-5)


def test_policy_and_baseline_must_be_of_one_epoch(models: tuple[ServedModel, ServedModel]) -> None:
    other = Held(model_of(models[1]), "baseline")
    other._serving = replace(other._serving, manifest=manifest("baseline", epoch=2))  # type: ignore[type-var]
    [answer] = Scorer(models[0], other, 400).score_groups([random_query(1)])
    assert [answer] == Scorer(models[0], None, 400).score_groups([random_query(1)])
    with pytest.raises(NotReady, match="epoch 1, the baseline of epoch 2"):
        Scorer(models[0], other, 400, objectives={"rlp"}).score_rollouts(
            [make_rollout(random_query(1))]
        )


THOUGHTS = random_query(0).thoughts_G
LONG = (5,) * MAX_LENGTH_TOKENS
BAD_QUERIES = {
    "no context": (GroupQuery((), (1,), PROMPTING, THOUGHTS), "0 context tokens"),
    "no target": (GroupQuery((1,), (), PROMPTING, THOUGHTS), "0 target tokens"),
    "no thoughts": (GroupQuery((1,), (1,), PROMPTING, ()), "0 thoughts"),
    "no bridge": (GroupQuery((1,), (1,), Prompting(), THOUGHTS), "bridge_ids is empty"),
    "target opens": (GroupQuery((1,), (OPEN_ID,), PROMPTING, THOUGHTS), "think-open token"),
    "id too large": (GroupQuery((1, 1 << 70), (1,), PROMPTING, THOUGHTS), "expected 0 to 258"),
    "negative id": (GroupQuery((1,), (-1,), PROMPTING, THOUGHTS), "token id -1"),
    "too long": (GroupQuery(LONG, (1,), PROMPTING, THOUGHTS), "the model takes 96"),
}


@pytest.mark.parametrize(("query", "message"), BAD_QUERIES.values(), ids=BAD_QUERIES.keys())
def test_a_bad_group_fails_alone(scorer: Scorer, query: GroupQuery, message: str) -> None:
    good = random_query(5)
    before, bad, after = scorer.score_groups([good, query, good])
    assert isinstance(bad, InvalidInput)
    assert message in str(bad)
    assert isinstance(before, GroupLikelihoods)
    assert before == after


def test_the_longest_input_is_the_models(scorer: Scorer) -> None:
    around = 3 + 3 + 1 + 3  # head, bridge, one thought token, close
    fits = GroupQuery((5,) * (MAX_LENGTH_TOKENS - around), (1,), PROMPTING, (THOUGHTS[0],))
    fits = replace(fits, thoughts_G=(Thought((9,), (), (), False),))
    longer = replace(fits, context_ids_N=(*fits.context_ids_N, 5))
    got, refused = scorer.score_groups([fits, longer])
    assert isinstance(got, GroupLikelihoods)
    assert isinstance(refused, InvalidInput)


def spans(*versions: int) -> tuple[Thought, ...]:
    return tuple(Thought((1, 2), (), (VersionSpan(v, 2),), False) for v in versions)


BAD_ROLLOUTS = {
    "newer": ({"max_staleness": 9}, (spans(0, 1),), "epoch 1, version 0; expected the same epoch"),
    "epoch": ({"epoch": 2}, (spans(0, 0),), "sampled in epoch 2"),
    "shape": ({}, (spans(0, 0),) * 2, "1 positions and 2 groups"),
    "objective": ({"objective": "os.path"}, (spans(0, 0),), "loaded at start: rlp"),
    "json": ({"objective_json": "{"}, (spans(0, 0),), "not JSON"),
    "list": ({"objective_json": "[]"}, (spans(0, 0),), "not a JSON object"),
    "keys": ({"objective_json": '{"x": 1}'}, (spans(0, 0),), "refuses its parameters"),
    "target": ({"positions_K": (Position(1, ()),)}, (spans(0, 0),), "0 target tokens"),
}


@pytest.mark.parametrize(
    ("changes", "thoughts_KG", "message"), BAD_ROLLOUTS.values(), ids=BAD_ROLLOUTS.keys()
)
def test_a_bad_rollout_fails_alone(
    scorer: Scorer, changes: dict[str, Any], thoughts_KG: Any, message: str
) -> None:
    good = make_rollout(random_query(5))
    bad = replace(make_rollout(random_query(6), **changes), thoughts_KG=thoughts_KG)
    before, failed, after = scorer.score_rollouts([good, bad, good])
    assert message in (failed.error or "")
    assert failed.rollout == bad
    assert failed.rewards_KG == ()
    assert before == after
    assert before.failure is None


def test_a_failed_rollout_passes_through(scorer: Scorer) -> None:
    failed = replace(make_rollout(random_query(5)), thoughts_KG=(), error="out of memory")
    [result] = scorer.score_rollouts([failed])
    assert (result.rollout, result.error, result.failure) == (failed, None, "out of memory")


def test_strictly_on_policy_means_exactly_that_version(
    models: tuple[ServedModel, ServedModel], tmp_path: Path
) -> None:
    policy = serve(build_model_directory(tmp_path), "policy", version=3)
    scorer = Scorer(policy, None, 400, objectives={"rlp"})
    for sampled, staleness, failure in ((3, 0, None), (2, 0, "exactly that one"), (2, 1, None)):
        rollout = make_rollout(random_query(1), max_staleness=staleness)
        rollout = replace(rollout, thoughts_KG=(spans(sampled, 3),))
        [result] = scorer.score_rollouts([rollout])
        assert result.error is None if failure is None else failure in (result.error or "")


class Fixed(Objective):
    """An objective whose rewards a test chooses."""

    Config = BaseModel

    def positions(self, document: Document, rng: Random) -> tuple[Position, ...]:
        return ()

    def rewards(self, group: Any) -> tuple[float, ...]:
        return tuple(1.0 / value for value in self.config)


@pytest.mark.parametrize(
    ("config", "message"),
    [((1.0,), "for 2 thoughts"), ((1.0, 1e-320), "one finite number"), ((1, 0), "ZeroDivision")],
)
def test_the_error_names_an_objective_that_misbehaves(config: Any, message: str) -> None:
    query = random_query(1, group_size=2)
    likelihoods = GroupLikelihoods((-1.0, -2.0), -1.0, 1, 0, 0)
    with pytest.raises(ForethoughtError, match=message):
        rewards_of(Fixed(config), query, likelihoods)


def test_diverged_weights_are_an_error_not_a_number() -> None:
    diverged = Held(Bigram(torch.full((VOCAB_SIZE, VOCAB_SIZE), math.nan)))
    [answer] = Scorer(diverged, None, 400).score_groups([random_query(1)])
    assert isinstance(answer, ForethoughtError)
    assert "expected finite numbers" in str(answer)


def test_a_batch_that_fails_is_scored_one_by_one(
    models: tuple[ServedModel, ServedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Scorer(*models, max_batch_tokens=400, objectives={"rlp"})
    body = type(model_of(models[0]).base_model)
    forward = body.forward

    def poisoned(self: Any, input_ids: torch.Tensor, **options: Any) -> Any:
        if (input_ids == 77).any():
            raise RuntimeError("out of memory")
        return forward(self, input_ids=input_ids, **options)

    good, bad = make_rollout(random_query(1)), make_rollout(random_query(2))
    poison = (Thought((77,), (), (VersionSpan(0, 1),), False),)
    bad = replace(bad, thoughts_KG=(poison,))
    expected = scorer.score_rollouts([good])
    monkeypatch.setattr(body, "forward", poisoned)

    before, failed = scorer.score_rollouts([good, bad])

    assert failed.error == "internal error (RuntimeError); see the server's log"
    assert before.rewards_KG[0] == pytest.approx(expected[0].rewards_KG[0], abs=1e-5)


async def test_all_callers_share_one_compute_thread(scorer: Scorer) -> None:
    names = await asyncio.gather(*(scorer.run(_thread_name) for _ in range(4)))
    assert len(set(names)) == 1
    assert names[0].startswith("scorer")
    await scorer.close()


def _thread_name() -> str:
    import threading

    return threading.current_thread().name
