"""RLP from corpus to optimizer step in one loop, one process, one thread.

    python examples/rlp_loop.py                                  # half a minute: learns to think reliably
    python examples/rlp_loop.py --positions uniform --steps 160  # as published: any token, not only answers

The loop in :func:`train` is Algorithm 1 of RLP (arXiv 2510.01265, version 2); the functions above are its
lines. Model (0.12M parameters) and corpus are those of Forethought's demo: a document ends in the number
that six operations modulo 7 lead to, more than two layers can follow in one pass.

    here             in the system                              what the system adds
    read_documents   forethought/corpus/                        any text, windows, mixtures, cursors
    next(stream)     trainer/admission/feed.py                  tasks for replicas, bounded staleness
    draw_position    forethought/objectives/parts/positions.py  by entropy, several per document
    sample_thoughts  services/rollout/torch_engine.py           new weights between batches; vLLM
    score_thoughts,  services/reward/scoring.py                 one pair of versions; failures as data
    score_no_think   forethought/compute/logprob.py             (called here)
    rewards          forethought/objectives/rlp.py              floored, clipped, as probabilities
    advantages       forethought/estimators.py                  over the batch, by standard deviation
    surrogate_loss   trainer/batch/builder.py                   filters, aggregations
                     forethought/compute/packing.py             (called here: trees in micro-batches)
                     trainer/learner/loss.py                    other surrogates, importance correction
    optimizer.step   trainer/learner/learner.py                 float32 masters, schedules, skipped steps
    update_baseline  trainer/learner/ema.py                     frozen, or none
    (next version)   trainer/publisher.py                       new weights pushed to every replica
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Sequence
from itertools import chain
from random import Random
from statistics import fmean
from typing import Any

import torch

from forethought.compute.answers import Evaluation, Query, evaluate
from forethought.compute.forms import forms_of
from forethought.compute.logprob import Continuation, score_continuations
from forethought.compute.model import LanguageModel, find_markers, load_language_model
from forethought.compute.packing import Row, packs_of
from forethought.compute.sampling import Sample, SampleRequest, derive_seed, sample
from forethought.compute.token_logprobs import Targets, logprobs
from forethought.lab.demo.arms import base_model
from forethought.lab.demo.corpus import ANSWER_PLACE, THINK_CLOSE, THINK_OPEN, documents
from forethought.special_tokens import special_tokens_of
from forethought.types import Document, Position, Prompting, Sampling

BATCH_DOCUMENTS, NUM_HELDOUT_DOCUMENTS = 32, 512
GROUP_SIZE = 8  # G, thoughts per position
MAX_THOUGHT_TOKENS = 9  # the close token included
MAX_BATCH_TOKENS = 16_384  # of one forward pass
LEARNING_RATE, GRAD_CLIP_NORM = 2e-4, 1.0
CLIP_LOW, CLIP_HIGH = 0.2, 0.28  # the paper names none; these are DAPO's
BASELINE_DECAY = 0.999
CPU = torch.device("cpu")


def read_documents(
    tokenizer: Any, size: int, seed: int, heldout: bool = False
) -> Iterator[Document]:
    """The demo's documents, one token per word; the corpus marks the answer of each.

    The BOS is the prompting's, so none of the text's own remains.
    """
    special = special_tokens_of(tokenizer)
    for number, document in enumerate(documents(size, seed=seed, heldout=heldout)):
        whole_ids = tokenizer(document.text, add_special_tokens=False)["input_ids"]
        token_ids = special.without_bos(whole_ids)
        mark = ANSWER_PLACE - (len(whole_ids) - len(token_ids))
        yield Document(f"demo#{number}", "demo", token_ids, marks=(mark,))


def draw_position(document: Document, positions: str, rng: Random) -> Query:
    """One position t: the context is x_<t, the target the next token x_t."""
    ids = document.token_ids_N
    index = rng.choice(document.marks) if positions == "marked" else rng.randrange(1, len(ids))
    return Query(document, Position(index, (ids[index],)))


def sample_thoughts(
    policy: Any, queries_B: Sequence[Query], prompting: Prompting, seed: int, version: int
) -> list[list[Sample]]:
    """c_1 ... c_G ~ pi_policy(. | x_<t), from think-open to think-close or the budget. [B][G]."""
    requests = [
        SampleRequest(
            prefix_ids=prompting.thinking_prefix(query.context_ids),
            seeds_G=tuple(derive_seed(seed, version, b, g) for g in range(GROUP_SIZE)),
            max_tokens=MAX_THOUGHT_TOKENS,
            temperature=1.0,
            stop_ids=prompting.close_ids,
        )
        for b, query in enumerate(queries_B)
    ]
    return sample(policy, requests)


def score_thoughts(
    policy: Any, queries_B: Sequence[Query], thoughts_BG: list[list[Sample]], prompting: Prompting
) -> torch.Tensor:
    """Eq. 3: log p_policy(x_t | x_<t, c). A thought that ran out of budget is closed by force. [B, G]."""
    branches = [
        Continuation.after_thought(prompting, q.context_ids, c.token_ids_L, c.stopped, q.target_ids)
        for q, thoughts_G in zip(queries_B, thoughts_BG, strict=True)
        for c in thoughts_G
    ]
    scores = score_continuations(policy, branches, MAX_BATCH_TOKENS)
    return torch.tensor([score.total for score in scores]).view(len(queries_B), -1)


def score_no_think(baseline: Any, queries_B: Sequence[Query], prompting: Prompting) -> torch.Tensor:
    """Eq. 4: log p_baseline(x_t | x_<t) without a thought, the think-open token's mass removed. [B].

    Left in, that mass would earn every thought -log(1 - p(think-open)) for nothing.
    """
    branches = [
        Continuation.without_thought(prompting, q.context_ids, q.target_ids) for q in queries_B
    ]
    scores = score_continuations(baseline, branches, MAX_BATCH_TOKENS)
    return torch.tensor([score.total for score in scores])


def rewards(policy_logprobs_BG: torch.Tensor, baseline_logprobs_B: torch.Tensor) -> torch.Tensor:
    """Eq. 5: what a thought adds to the log-prob of the next token, in nats. [B, G]."""
    return policy_logprobs_BG - baseline_logprobs_B[:, None]


def advantages(rewards_BG: torch.Tensor) -> torch.Tensor:
    """Eq. 7: A_i = G/(G-1) (r_i - mean r). The baseline, the same for all G, cancels. [B, G]."""
    size = rewards_BG.shape[1]
    return size / (size - 1) * (rewards_BG - rewards_BG.mean(dim=1, keepdim=True))


def surrogate_loss(
    policy: Any,
    queries_B: Sequence[Query],
    thoughts_BG: list[list[Sample]],
    advantages_BG: torch.Tensor,
    prompting: Prompting,
) -> torch.Tensor:
    """Eq. 8: -1/(BG) sum_i 1/|c_i| sum_u min(rho_u A_i, clip(rho_u, 1-eps_low, 1+eps_high) A_i).

    Only thought tokens are trained on. The G thoughts of a context are branches of one tree: the context is
    computed once, and all trees are packed into one row, in which M thought tokens are predicted.
    """
    prefixes = [
        prompting.thinking_prefix(q.context_ids) for q in queries_B for _ in range(GROUP_SIZE)
    ]
    thoughts = list(chain.from_iterable(thoughts_BG))
    rows = [
        Row(prefix + c.token_ids_L, num_tail=len(c.token_ids_L))
        for prefix, c in zip(prefixes, thoughts, strict=True)
    ]
    (pack,) = packs_of(rows, forms_of(policy), MAX_BATCH_TOKENS, CPU)
    targets = Targets(torch.tensor([i for row in pack.rows for i in rows[row].target_ids]))
    behaviour_logprobs_M = torch.tensor([p for row in pack.rows for p in thoughts[row].logprobs_L])
    lengths_R = torch.tensor([rows[row].num_tail for row in pack.rows])
    advantages_M = advantages_BG.flatten()[list(pack.rows)].repeat_interleave(lengths_R)
    weights_M = (1 / (lengths_R * len(rows))).repeat_interleave(lengths_R)

    ratio_M = (logprobs(policy, pack, targets) - behaviour_logprobs_M).exp()
    clipped_M = ratio_M.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH)
    surrogate_M = torch.minimum(ratio_M * advantages_M, clipped_M * advantages_M)
    return -(weights_M * surrogate_M).sum()


@torch.no_grad()
def update_baseline(baseline: Any, policy: Any) -> None:
    """phi <- tau phi + (1 - tau) theta."""
    for average, parameter in zip(baseline.parameters(), policy.parameters(), strict=True):
        average.lerp_(parameter, 1 - BASELINE_DECAY)


def train(
    policy: Any,
    stream: Iterator[Document],
    prompting: Prompting,
    steps: int,
    positions: str,
    seed: int,
) -> None:
    """Algorithm 1, strictly on-policy: version v of the policy samples, scores and learns batch v.

    So rho is 1 and nothing is clipped; in the system, thoughts may be some versions old.
    """
    baseline = copy.deepcopy(policy)  # phi_0 = theta_0
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    rng = Random(seed)
    print("version    gain  log p(x|c)  log p(x)  thought tokens  gradient norm")
    for version in range(steps):
        queries_B = [draw_position(next(stream), positions, rng) for _ in range(BATCH_DOCUMENTS)]
        thoughts_BG = sample_thoughts(policy, queries_B, prompting, seed, version)
        policy_logprobs_BG = score_thoughts(policy, queries_B, thoughts_BG, prompting)
        baseline_logprobs_B = score_no_think(baseline, queries_B, prompting)
        rewards_BG = rewards(policy_logprobs_BG, baseline_logprobs_B)
        advantages_BG = advantages(rewards_BG)

        optimizer.zero_grad()
        loss = surrogate_loss(policy, queries_B, thoughts_BG, advantages_BG, prompting)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), GRAD_CLIP_NORM)
        optimizer.step()
        update_baseline(baseline, policy)

        tokens = fmean(len(thought.token_ids_L) for thought in chain.from_iterable(thoughts_BG))
        means = [float(x.mean()) for x in (rewards_BG, policy_logprobs_BG, baseline_logprobs_B)]
        print(
            "{:7} {:7.3f} {:11.3f} {:9.3f} {:15.2f} {:14.3f}".format(version, *means, tokens, norm)
        )


def measure(language_model: LanguageModel, prompting: Prompting) -> Evaluation:
    """With and without a thought, at the answers of documents that no training split holds."""
    stream = read_documents(language_model.tokenizer, NUM_HELDOUT_DOCUMENTS, seed=0, heldout=True)
    queries = [draw_position(document, "marked", Random(0)) for document in stream]
    sampling = Sampling(GROUP_SIZE, MAX_THOUGHT_TOKENS, stop_ids=prompting.close_ids)
    return evaluate(language_model, queries, prompting, sampling, seed=1)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, train, measure again."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=80, help="optimizer steps (%(default)s)")
    parser.add_argument("--positions", choices=("marked", "uniform"), default="marked")
    parser.add_argument("--seed", type=int, default=0, help="of corpus, positions and thoughts")
    given = parser.parse_args(argv)

    torch.set_num_threads(1)  # tensors are small: a second thread only waits for the first
    language_model = load_language_model(base_model(), "float32", "cpu")
    markers = find_markers(language_model.tokenizer, THINK_OPEN, THINK_CLOSE)
    prompting = Prompting(
        bridge_ids=markers.open_ids,
        close_ids=markers.close_ids,
        bos_ids=special_tokens_of(language_model.tokenizer).bos_ids,
    )
    stream = read_documents(language_model.tokenizer, given.steps * BATCH_DOCUMENTS, given.seed)
    before = measure(language_model, prompting)
    train(language_model.model, stream, prompting, given.steps, given.positions, given.seed)

    print("\nheld out  accuracy  without a thought     NLL  without    gain  thought tokens")
    for name, found in (("before", before), ("after", measure(language_model, prompting))):
        row = (found.think_accuracy, found.no_think_accuracy, found.think_nll, found.no_think_nll)
        row += (found.information_gain, found.thought_tokens_mean)
        print("{:8} {:9.3f} {:18.3f} {:7.3f} {:8.3f} {:7.3f} {:15.2f}".format(name, *row))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
