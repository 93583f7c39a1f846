"""``python -m trainer.make_base``: train a small base model from the corpus, when none is given.

    DIR/base/init/    byte-level BPE tokenizer trained on the corpus, random weights
    DIR/base/run/     the run directory of a separate next-token run
    DIR/base/model/   its result, the base model of the main run

Design: a fresh model has never seen the think markers, and would never close a thought. So a share of
its windows contain one thought that quotes a few tokens of the preceding text: enough to learn how
thoughts begin and end, and nothing about which thoughts are useful. The price is a base that is slightly
worse at plain text than the same number of steps without quotes would have made it.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from forethought import process
from forethought.compute.model import Markers, find_markers
from forethought.compute.sampling import derive_seed
from forethought.config import Settings
from forethought.config.sections import ObjectiveSection
from forethought.corpus.mixture import Corpus
from forethought.corpus.sources import iterate_texts
from forethought.preflight import check_corpus, check_run
from forethought.run.directory import RunDirectory
from forethought.run.files import copy_whole, grant_usual_mode, rename_whole
from forethought.run.pinning import pinned
from forethought.types import Document
from trainer.assembly import assemble
from trainer.base_corpus import quote_thoughts, train_tokenizer
from trainer.next_token_run import NextTokenRun, PlainDocuments

log = logging.getLogger("trainer.make_base")

_TOKENIZER_CHARACTERS = 20_000_000


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and make the base; returns the exit status."""
    arguments = process.parser("python -m trainer.make_base", __doc__ or "").parse_args(argv)
    return process.exit_status("base", lambda: make_base(process.settings_of(arguments)))


def make_base(settings: Settings) -> int:
    """Train tokenizer and model into ``DIR/base/model``; resumes an interrupted run."""
    check_corpus(settings)
    settings = pinned(settings)
    root = settings.run.directory / "base"
    if not (root / "init").is_dir():
        _initialise(settings, root)
    of_base = _base_settings(settings, root)
    parts = assemble(of_base, check_run(of_base))
    tokenizer = parts.learner.language_model.tokenizer
    markers = find_markers(tokenizer, settings.model.think_open, settings.model.think_close)
    documents = QuotingDocuments(parts.corpus, markers, settings)
    run = NextTokenRun(parts, PlainDocuments(parts, documents))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: run.stop())
    with parts.directory.owned():
        summary = run.run()
    if not summary["done"]:  # stopped or failed: the next start resumes from the checkpoint
        return process.run_status(summary, stopped_status=0)
    copy_whole(Path(summary["checkpoint"]) / "model", root / "model")
    print(json.dumps(summary))
    return 0


class QuotingDocuments:
    """The corpus, with a quoted thought in a share of its windows."""

    def __init__(self, corpus: Corpus, markers: Markers, settings: Settings) -> None:
        self._corpus, self._markers, self._settings = corpus, markers, settings

    def take(self, num_documents: int) -> list[Document]:
        """The next windows; which of them get a thought depends on how many were drawn before."""
        first = self._corpus.cursor.num_drawn
        documents = self._corpus.take(num_documents)
        return [self._quote(document, first + i) for i, document in enumerate(documents)]

    def _quote(self, document: Document, number: int) -> Document:
        return quote_thoughts(
            document,
            Random(derive_seed(self._settings.run.seed, number)),
            self._markers.open_ids[0],  # the base's own tokenizer has each as one token
            self._markers.close_ids[0],
            self._settings.base.thought_share,
            max_quote_tokens=max(1, self._settings.sampling.max_thought_tokens // 2),
        )


def _initialise(settings: Settings, root: Path) -> None:
    section, model = settings.base, settings.model
    log.info("training a tokenizer of %d tokens on the corpus", section.vocab_size)
    cache = RunDirectory(settings.run.directory).cache
    tokenizer = train_tokenizer(
        _texts(settings, cache), section.vocab_size, model.think_open, model.think_close
    )
    longest = settings.corpus.window_tokens + settings.sampling.max_thought_tokens + 8
    torch.manual_seed(settings.run.seed)
    fresh = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=section.hidden_size,
            intermediate_size=3 * section.hidden_size,
            num_hidden_layers=section.num_layers,
            num_attention_heads=section.num_heads,
            num_key_value_heads=section.num_heads,
            max_position_embeddings=longest,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    partial = root / "init.partial"
    fresh.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    grant_usual_mode(partial)
    rename_whole(partial, root / "init")


def _texts(settings: Settings, cache: Path) -> Iterator[str]:
    """The corpus's text, up to a size beyond which a small vocabulary no longer changes."""
    budget = _TOKENIZER_CHARACTERS
    for text in iterate_texts(settings.corpus, cache):
        if budget <= 0:
            return
        yield text[:budget]
        budget -= len(text)


def _base_settings(settings: Settings, root: Path) -> Settings:
    """The settings of a next-token run over the same corpus, derived from the run's settings."""
    section = settings.base
    learner: dict[str, Any] = {
        "steps": section.steps,
        "batch_tasks": section.batch_documents,
        "learning_rate": section.learning_rate,
        "schedule": "cosine",
        "warmup_steps": max(1, section.steps // 20),
        "beta2": 0.95,
        "weight_decay": 0.1,
        "next_token_every_steps": 0,  # every step of this run is one
        "next_token_coef": 0.0,
    }
    return settings.model_copy(
        update={
            "run": settings.run.model_copy(update={"directory": root / "run"}),
            "model": settings.model.model_copy(
                update={"path": str(root / "init"), "dtype": "float32"}
            ),
            "objective": ObjectiveSection(name="ntp"),
            "learner": settings.learner.model_copy(update=learner),
        }
    )


if __name__ == "__main__":
    sys.exit(main())
