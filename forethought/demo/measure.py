"""Measuring the demo's models on held-out documents, at the answers."""

from __future__ import annotations

from pathlib import Path

from forethought.demo.arms import (
    GROUP_SIZE,
    MAX_THOUGHT_TOKENS,
    NUM_HELDOUT_DOCUMENTS,
    WINDOW_TOKENS,
)
from forethought.demo.corpus import THINK_CLOSE, THINK_OPEN


def measure(model: Path, heldout: Path, cache: Path, seed: int = 1) -> dict[str, float]:
    """Think and no-think figures of a model directory over the held-out documents.

    Every arm sees the same documents and the same random numbers.
    """
    import torch

    from forethought.compute.evaluation import Query, evaluate
    from forethought.compute.model import find_markers, load_language_model
    from forethought.config.sections import CorpusSection
    from forethought.corpus.mixture import open_corpus
    from forethought.objectives.positions import at
    from forethought.types import Prompting, Sampling

    torch.set_num_threads(1)
    language_model = load_language_model(model, "float32", "cpu")
    markers = find_markers(language_model.tokenizer, THINK_OPEN, THINK_CLOSE)
    section = CorpusSection(path=str(heldout), window_tokens=WINDOW_TOKENS)
    corpus = open_corpus(section, language_model.tokenizer, 0, cache)
    queries = [
        Query(document, position)
        for document in corpus.take(NUM_HELDOUT_DOCUMENTS)
        for position in at(document, list(document.marks), target_tokens=1)
    ]
    evaluation = evaluate(
        language_model,
        queries,
        Prompting(bridge_ids=(markers.open_id,), close_ids=(markers.close_id,)),
        Sampling(GROUP_SIZE, MAX_THOUGHT_TOKENS, 1.0, (markers.close_id,)),
        seed,
    )
    return evaluation.to_dict()
