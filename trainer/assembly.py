"""Assemble a run: model, think markers, corpus and learner from the settings, all of it checked.

Design: every configuration error is found here, before Redis or a replica is touched.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from forethought.compute.fp32_head import set_fp32_head
from forethought.compute.model import (
    LanguageModel,
    Markers,
    add_markers,
    find_markers,
    load_language_model,
    read_model_files,
)
from forethought.compute.prompting import end_ids, prompting_of
from forethought.config import Settings, write_resolved
from forethought.corpus.mixture import Corpus, open_corpus
from forethought.errors import InvalidInput
from forethought.objectives import Objective
from forethought.run.directory import RunDirectory
from forethought.run.files import rename_whole
from forethought.types import Prompting
from trainer.learner.learner import Learner

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Assembly:
    """The parts of a run.

    Example:
        ``assemble(settings, check_run(settings))``
    """

    settings: Settings
    directory: RunDirectory
    objective: Objective
    learner: Learner
    corpus: Corpus
    markers: Markers | None
    prompting: Prompting | None  # markers and prompting: None if the objective has no thoughts

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The model's end-of-text tokens."""
        language_model = self.learner.language_model
        return end_ids(language_model.model, language_model.tokenizer)

    def record_settings(self) -> None:
        """Write the resolved configuration of a run that has been accepted and has steps left.

        Not earlier: `eval` takes prompt and corpus from it, and a refused learner trained with neither.
        """
        config = self.directory.config
        partial = config.with_name(f"{config.name}.partial")
        write_resolved(self.settings, partial)
        rename_whole(partial, config)

    def model_files(self) -> dict[str, bytes]:
        """The policy's config and tokenizer files, as included in a snapshot."""
        language_model = self.learner.language_model
        with tempfile.TemporaryDirectory() as folder:
            language_model.model.config.save_pretrained(folder)
            language_model.model.generation_config.save_pretrained(folder)
            language_model.tokenizer.save_pretrained(folder)
            return read_model_files(folder)


def assemble(settings: Settings, objective: Objective) -> Assembly:
    """Build every part of a run whose settings and ``objective`` passed :mod:`forethought.preflight`.

    Raises:
        InvalidInput: the model or the corpus is unusable, or they do not fit together.
    """
    if settings.learner.num_threads:
        torch.set_num_threads(settings.learner.num_threads)
    torch.manual_seed(settings.run.seed)
    language_model = _model(settings)
    markers = _markers(settings, language_model) if objective.thinks else None
    set_fp32_head(language_model.model, settings.model.fp32_head)  # markers may replace the head
    prompting = prompting_of(objective, language_model.tokenizer, markers) if markers else None
    check_length(settings, objective, language_model, prompting)
    directory = RunDirectory(settings.run.directory)
    corpus = open_corpus(
        settings.corpus, language_model.tokenizer, settings.run.seed, directory.cache
    )
    log.info("corpus: %s", _what_was_read(corpus, settings.corpus.window_tokens))
    learner = Learner(language_model, settings.learner, settings.baseline)
    return Assembly(settings, directory, objective, learner, corpus, markers, prompting)


def _what_was_read(corpus: Corpus, window_tokens: int) -> str:
    """A line for people; ``up`` prints it (:mod:`forethought.cli.notices`)."""
    sources = (f"{name} {num:,}" for name, num in corpus.windows_per_source.items())
    return f"{corpus.num_windows:,} windows of {window_tokens} tokens: {', '.join(sources)}"


def check_length(
    settings: Settings,
    objective: Objective,
    language_model: LanguageModel,
    prompting: Prompting | None,
) -> None:
    """Check that a window with its thought fits into the model's context.

    Raises:
        InvalidInput: a window with its thought is longer than the model's context.
    """
    needed = settings.corpus.window_tokens
    if prompting is not None:
        needed += prompting.num_thinking_tokens + settings.sampling.max_thought_tokens
        needed += objective.prediction_tokens
    if needed > language_model.max_length_tokens:
        raise InvalidInput(
            f"windows of {settings.corpus.window_tokens} tokens with their thoughts need {needed}, the "
            f"model takes {language_model.max_length_tokens}; lower corpus.window_tokens or "
            "sampling.max_thought_tokens"
        )


def _model(settings: Settings) -> LanguageModel:
    section = settings.model
    if not section.path:
        raise InvalidInput(
            "model.path is empty; expected the directory of a transformers causal language model "
            "(`forethought up` trains a small one from the corpus when there is none)"
        )
    return load_language_model(
        Path(section.path), section.dtype, section.device, section.max_length_tokens
    )


def _markers(settings: Settings, language_model: LanguageModel) -> Markers:
    section = settings.model
    if section.add_think_tokens:
        add_markers(language_model, section.think_open, section.think_close)
    return find_markers(language_model.tokenizer, section.think_open, section.think_close)
