"""Sample thoughts as text: a context, the model's thoughts, and the ground-truth continuation.

Design: the journal contains token ids, and the vocabulary is in the newest checkpoint (or the initial
model), so text is decoded here with only the tokenizer and no model. Without a tokenizer, ids are shown.
Samples are the first of their batch, so they are not hand-picked. The price is that they may not be
representative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forethought.lab.report.numbers import number, signed
from forethought.lab.report.record import RunRecord

CONTEXT_TOKENS = 80
"""Number of trailing context tokens that are shown."""

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class ShownThought:
    """A thought and its reward. ``best``: the highest reward of its group.

    Example:
        ``ShownThought("2 + 2", "", "0.412", "-0.03", "", best=True)``
    """

    text: str
    prediction: str
    reward: str
    logprob: str
    note: str
    best: bool


@dataclass(frozen=True, slots=True)
class ShownSample:
    """A position with its thoughts.

    Example:
        ``ShownSample("batch 0", "train.jsonl#7:0, token 11", "2 + 2 =", "4", "-1.20", thoughts)``
    """

    batch: str
    place: str
    context: str
    target: str
    baseline: str
    thoughts: tuple[ShownThought, ...]


def samples_of(run: RunRecord) -> list[ShownSample]:
    """The samples of a run's review, as text."""
    if not run.review.samples:
        return []
    decode = _decoder(run)
    return [_sample(given, decode) for given in run.review.samples]


def _sample(given: dict[str, Any], decode: Decode) -> ShownSample:
    context = given["context_ids"]
    cut = "… " if len(context) > CONTEXT_TOKENS else ""
    thoughts = given["thoughts"]
    most = max((thought["reward"] for thought in thoughts), default=0.0)
    flat = all(thought["reward"] == most for thought in thoughts)
    return ShownSample(
        batch=f"batch {given['batch']}",
        place=f"{given['document']}, token {given['index']}",
        context=cut + decode(context[-CONTEXT_TOKENS:]),
        target=decode(given["target_ids"]),
        baseline=_number(given["baseline_logprob"]),
        thoughts=tuple(
            _thought(t, decode, best=not flat and t["reward"] == most) for t in thoughts
        ),
    )


def _thought(given: dict[str, Any], decode: Decode, best: bool) -> ShownThought:
    return ShownThought(
        text=decode(given["thought_ids"]),
        prediction=decode(given["prediction_ids"]),
        reward=_number(given["reward"]),
        logprob=_number(given["policy_logprob"]),
        note="" if given["closed"] else "truncated at the budget",
        best=best,
    )


def _number(value: Any) -> str:
    known = number(value)
    return "" if known is None else signed(known)


def _decoder(run: RunRecord) -> Decode:
    """A decoder from the newest checkpoint's tokenizer, or from the initial model's."""
    latest = run.directory.latest_checkpoint()
    places = [latest / "model"] if latest else []
    places += [Path(str(path))] if (path := run.setting("model", "path")) else []
    for place in places:
        if (place / "tokenizer.json").is_file():
            return _of_file(place / "tokenizer.json")
    return _ids


def _of_file(path: Path) -> Decode:
    try:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(path))
    except Exception:  # tokenizers raises bare Exceptions for unreadable files
        return _ids

    def decode(token_ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(token_ids), skip_special_tokens=False))

    return decode


def _ids(token_ids: Sequence[int]) -> str:
    return " ".join(map(str, token_ids))
