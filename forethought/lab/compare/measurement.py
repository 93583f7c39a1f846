"""``python -m forethought.lab.compare.measurement``: one model on the held-out corpus of a comparison.

    answers    the positions that the corpus marks (or one uniformly random position per document)
    elsewhere  one other position per document: the effect of thinking where there is nothing to think about

Design: a separate process, so that the comparison itself never loads torch. All models see the same
positions and the same random numbers; only their weights differ. The price is loading torch once per
measurement.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forethought.lab.compare.plan import EvaluationEntry
from forethought.run.files import write_whole

if TYPE_CHECKING:
    from forethought.compute.answers import Query
    from forethought.types import Document


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the record; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--evaluation", required=True, help="the plan's section, as JSON")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(argv)
    from forethought import process

    def run() -> int:
        entry = EvaluationEntry.model_validate_json(arguments.evaluation)
        measured = measure_model(arguments.model, entry, arguments.cache)
        identity = {"model": str(arguments.model), "evaluation": entry.model_dump()}
        record = identity | measured
        write_whole(arguments.out, json.dumps(record, indent=2) + "\n")
        return 0

    return process.exit_status("measurement", run)


def measure_model(model: Path, entry: EvaluationEntry, cache: Path) -> dict[str, Any]:
    """``num_parameters``, and the metrics at ``answers`` and ``elsewhere`` by name.

    Raises:
        InvalidInput: the model or the corpus cannot be read, or the corpus has no such positions.
    """
    import torch

    from forethought.compute.answers import evaluate
    from forethought.compute.model import find_markers, load_language_model
    from forethought.config.sections import CorpusSection, TextSection
    from forethought.corpus.mixture import open_corpus
    from forethought.special_tokens import special_tokens_of
    from forethought.types import Prompting, Sampling

    torch.set_num_threads(1)
    language_model = load_language_model(model, "float32", "cpu")
    markers = find_markers(language_model.tokenizer, entry.think_open, entry.think_close)
    keys = {name: getattr(entry, name) for name in TextSection.model_fields}
    section = CorpusSection(path=entry.corpus, window_tokens=entry.window_tokens, **keys)
    corpus = open_corpus(section, language_model.tokenizer, 0, cache)
    documents = corpus.take(min(entry.num_documents, corpus.num_windows))
    prompting = Prompting(
        bridge_ids=markers.open_ids,
        close_ids=markers.close_ids,
        num_open_tokens=len(markers.open_ids),
        num_close_tokens=len(markers.close_ids),
        bos_ids=special_tokens_of(language_model.tokenizer).bos_ids,
    )
    sampling = Sampling(
        entry.num_thoughts,
        entry.max_thought_tokens,
        entry.temperature,
        markers.stop_ids,
        stop_sequences=markers.stop_sequences,
    )
    figures: dict[str, Any] = {
        "num_parameters": sum(p.numel() for p in language_model.model.parameters())
    }
    for kind, queries in _queries(documents, entry).items():
        evaluation = evaluate(language_model, queries, prompting, sampling, entry.seed)
        figures[kind] = {"num_positions": len(queries)} | evaluation.to_dict()
    return figures


def _queries(documents: Sequence[Document], entry: EvaluationEntry) -> dict[str, list[Query]]:
    from forethought.compute.answers import Query
    from forethought.errors import InvalidInput
    from forethought.objectives.parts.positions import at

    rng = random.Random(f"elsewhere/{entry.seed}")
    answers: list[Query] = []
    elsewhere: list[Query] = []
    for document in documents:
        every = set(range(1, len(document.token_ids_N)))
        if entry.positions == "marked":
            marks, chosen = set(document.marks), _marked(document, entry)
        else:
            marks, chosen = set(), {rng.choice(sorted(every))}
        answers += (Query(document, p) for p in at(document, sorted(chosen), target_tokens=1))
        if entry.elsewhere and (others := sorted(every - chosen - marks)):
            elsewhere += (Query(document, p) for p in at(document, [rng.choice(others)], 1))
    if not answers:
        raise InvalidInput(
            f"the {len(documents)} documents of {entry.corpus} have no marked position; expected marks, "
            'matches of evaluation.marks_pattern, or evaluation.positions = "uniform"'
        )
    return {"answers": answers, "elsewhere": elsewhere} if elsewhere else {"answers": answers}


def _marked(document: Document, entry: EvaluationEntry) -> set[int]:
    """The marked positions of a document, or as many of them as the plan wants."""
    from forethought.objectives.parts.positions import marked

    rng = random.Random(f"marked/{entry.seed}/{document.document_id}")
    num_positions = entry.num_positions or len(document.token_ids_N)
    return {position.index for position in marked(document, num_positions, 1, rng)}


if __name__ == "__main__":
    sys.exit(main())
