"""Documents of the state-tracking tasks: the demo's held-out questions, generated at load time.

Design: they are a function of a seed, so that neither a file nor a network is needed, and none of them
occurs in a training corpus of the demo. The price is that the tasks need this package installed.
"""

from __future__ import annotations

from typing import Any

_NUM_QUESTIONS = 512
_SEED = 0


def problems(num_questions: int = _NUM_QUESTIONS, **_: Any) -> dict[str, Any]:
    """The harness's splits: only ``test``, with ``question`` and ``answer``."""
    from datasets import Dataset

    from forethought.lab.demo.corpus import EQUALS, documents

    rows = []
    for document in documents(num_questions, seed=_SEED, heldout=True):
        question, equals, rest = document.text.partition(EQUALS)
        rows.append({"question": question + equals, "answer": rest.split()[0]})
    return {"test": Dataset.from_list(rows)}
