"""Whether vLLM computes what transformers computes of the same weights, also after it took new ones.

    vLLM with the snapshot = transformers with it?        no: the snapshot is refused
    vLLM with other ones   = transformers with those?     no: vLLM starts anew at every change of weights

Design: measured once per started model, before anything is served, because vLLM has its own code for every
architecture, and its reload keeps old weights wherever a model loads them in a way of its own. All weights
are altered by one function of every element, so no second file is needed and a layer that stays behind
shows. The price is a copy of the model in this process's memory while it is measured, and two reloads.
Models above 2 GiB, and those that vLLM quantizes, are not measured; the learner's replay still sees them.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoModelForCausalLM

from forethought.compute.model import ONE_LOAD_AT_A_TIME, apply_soft_caps
from forethought.compute.precision import DTYPES
from forethought.compute.weights import named_weights
from forethought.errors import EngineLost, InvalidInput, one_line
from forethought.types import Document, Position, Prompting, Sampling, Task, Thought, WeightManifest
from services.rollout.vllm_worker import altered

log = logging.getLogger(__name__)

_LARGEST_BYTES = 2 << 30
_PREFIX_TOKENS, _NEW_TOKENS, _NUM_THOUGHTS = 20, 10, 4
_TOLERANCES = {"float32": 1e-4, "bfloat16": 0.1}
"""On average over tokens, in units of the standard deviation of a token's log-probs. Of wide random models
0.003 to 0.036 were seen in bfloat16, 0.75 where one layer stayed behind."""


class Sampler(Protocol):
    """A running vLLM with the weights of a snapshot."""

    manifest: WeightManifest
    vocabulary: int
    max_length_tokens: int

    async def sample(self, tasks: Sequence[Task], /) -> Sequence[Any]:
        """Thoughts [K][G] of every task, or why vLLM refused it."""
        ...

    async def take(
        self, manifest: WeightManifest, file: Path, *, keep_kv: bool, alter: bool = False
    ) -> None:
        """Replace the weights by those of the file, or by altered ones."""
        ...


def is_comparable(manifest: WeightManifest, options: Mapping[str, Any]) -> bool:
    """Whether the model is small enough, and not changed on purpose."""
    return manifest.num_bytes <= _LARGEST_BYTES and not options.get("quantization")


async def takes_new_weights(held: Sampler, directory: Path, file: Path) -> bool:
    """Compare vLLM, as started with a snapshot and with other weights, with transformers.

    Whatever goes wrong with other weights only is a reason not to change them in place.

    Raises:
        InvalidInput: they differ as started, or one of them does not run.
    """
    model = await asyncio.to_thread(_load, directory, held.manifest.dtype)
    if fault := await _fault_as_started(held, model):
        raise InvalidInput(
            f"vLLM does not compute {type(model).__name__} as the learner does: {fault}; expected equal "
            "log-probs: choose rollout.engine=torch, or another model"
        )
    if fault := await _fault_after_a_change(held, model, file):
        log.warning(
            "vLLM does not take new weights of %s in place (%s): it starts anew at every change of "
            "weights, which takes as long as its start and, meanwhile, memory for two; "
            "rollout.engine=torch changes them in place",
            type(model).__name__,
            fault,
        )
    return not fault


async def _fault_as_started(held: Sampler, model: Any) -> str:
    try:
        return await _fault(held, model)
    except EngineLost as error:
        return f"it dies at its first thought ({one_line(error)}; see this replica's log above)"


async def _fault_after_a_change(held: Sampler, model: Any, file: Path) -> str:
    """With altered weights; those of the file are back when it returns an empty text."""
    manifest = held.manifest
    other = replace(
        manifest, run_id=f"{manifest.run_id}.altered"
    )  # its cache is not the first one's
    try:
        await held.take(other, file, keep_kv=False, alter=True)
        _alter(model)
        fault = await _fault(held, model)
        await held.take(manifest, file, keep_kv=False)
    except Exception as error:
        return one_line(error)
    return fault


def _load(directory: Path, dtype: str) -> Any:
    try:
        with ONE_LOAD_AT_A_TIME:
            loaded = AutoModelForCausalLM.from_pretrained(
                str(directory), dtype=DTYPES[dtype], local_files_only=True
            )
    except Exception as error:
        raise InvalidInput(
            f"transformers does not load this snapshot to compare vLLM with it: {one_line(error)}; "
            "expected the learner's transformers or a newer one, and memory for a copy of the model"
        ) from error
    apply_soft_caps(loaded)
    return loaded.eval()


@torch.no_grad()
def _alter(model: Any) -> None:
    for tensor in named_weights(model).values():
        tensor.copy_(altered(tensor))


def _task(held: Sampler) -> Task:
    """A few thoughts after random tokens, within the length that vLLM was started with."""
    num_prefix = max(1, min(_PREFIX_TOKENS, held.max_length_tokens // 2))
    num_new = max(1, min(_NEW_TOKENS, held.max_length_tokens - num_prefix - 1))
    ids = tuple(random.Random(0).choices(range(held.vocabulary), k=num_prefix + 1))
    document, positions_K = Document("", "", ids), (Position(num_prefix, ids[-1:]),)
    sampling = Sampling(_NUM_THOUGHTS, num_new, 1.0, ())
    return Task(0, 0, 0, 0, "", "{}", document, positions_K, Prompting(), sampling, seed=0)


async def _fault(held: Sampler, model: Any) -> str:
    """In words, how vLLM's log-probs of its own thoughts differ from transformers'; empty if they agree."""
    task = _task(held)
    (thoughts_KG,) = await held.sample([task])
    if isinstance(thoughts_KG, str):
        return thoughts_KG
    prefix_ids = task.document.token_ids_N[:-1]
    difference = await asyncio.to_thread(_difference, model, prefix_ids, thoughts_KG[0])
    tolerance = _TOLERANCES[held.manifest.dtype]
    if difference <= tolerance:
        return ""
    return f"log-probs differ by {difference:.2%} of their spread, of which {tolerance:.2%} may be rounding"


@torch.no_grad()
def _difference(model: Any, prefix_ids: tuple[int, ...], thoughts_G: Sequence[Thought]) -> float:
    """The mean difference over all tokens, in units of the spread of a token's log-probs."""
    found = []
    for thought in thoughts_G:
        ids = torch.tensor([prefix_ids + thought.token_ids_L])
        logits = model(ids).logits[0, len(prefix_ids) - 1 : -1].float()
        logprobs = torch.log_softmax(logits, dim=-1)
        sampled = logprobs.gather(1, torch.tensor(thought.token_ids_L)[:, None])[:, 0]
        ours = torch.tensor(thought.behaviour_logprobs_L)
        found.append((sampled - ours).abs() / logprobs.std(dim=-1))
    return float(torch.cat(found).mean())
