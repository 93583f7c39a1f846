"""The corpora of the comparisons in ``configs/``, all from the demo's state tracking.

``plain/train.jsonl`` is read by all arms and has no worked documents. ``worked/train.jsonl`` contains the
correct states as a thought in every document, for mixed SFT. ``mixture/train.jsonl`` is for pre-training
the bases: documents with correct, random and idle thoughts, and with none. ``questions.jsonl`` contains
question, worked response and answer, for SFT and RLVR. ``heldout.jsonl`` has 512 plain documents whose
problems occur in no other file, and ``init/`` random weights and the tokenizer, the starting point of
bases.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from forethought.lab.demo.arms import NUM_CORPUS_DOCUMENTS, NUM_HELDOUT_DOCUMENTS
from forethought.lab.demo.base_model import write_initial_model
from forethought.lab.demo.corpus import (
    ANSWER_PLACE,
    PLAIN,
    RESIDUES,
    THINK_CLOSE,
    THINK_OPEN,
    Mixture,
    Problem,
    draw_problem,
    write_corpus,
)

_SEED = 0  # of the corpora; the arms' seeds control training
_NUM_MIXTURE_DOCUMENTS = 80_000
_WORKED = Mixture(worked_share=1.0, idle_share=0.0, right_share=1.0, random_share=0.0)


def write_corpora(directory: Path) -> None:
    """Write all corpora, unless they exist."""
    done = directory / "written"
    if done.exists():
        return
    contents = (
        ("plain", PLAIN, NUM_CORPUS_DOCUMENTS),
        ("worked", _WORKED, NUM_CORPUS_DOCUMENTS),
        ("mixture", Mixture(), _NUM_MIXTURE_DOCUMENTS),
    )
    for name, mixture, num_documents in contents:
        files = write_corpus(
            directory / name,
            num_documents=num_documents,
            seed=_SEED,
            mixture=mixture,
            num_heldout=NUM_HELDOUT_DOCUMENTS,
        )
        files.heldout.replace(directory / "heldout.jsonl")
    write_questions(directory / "questions.jsonl", NUM_CORPUS_DOCUMENTS)
    write_initial_model(directory / "init", _SEED)
    done.touch()


def write_questions(file: Path, num_questions: int) -> None:
    """Write problems as ``question``, worked ``response`` and ``answer``, of the train split."""
    rng = random.Random(f"questions/{_SEED}")
    lines = (json.dumps(_question(draw_problem(rng))) for _ in range(num_questions))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _question(problem: Problem) -> dict[str, str]:
    """A question ends with a space, so that no token spans the boundary."""
    answer, stop = problem.words[ANSWER_PLACE:]
    states = (RESIDUES[state] for state in problem.states)
    return {
        "question": " ".join(problem.words[:ANSWER_PLACE]) + " ",
        "response": " ".join((THINK_OPEN, *states, THINK_CLOSE, answer, stop)),
        "answer": answer,
    }
