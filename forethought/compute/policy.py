"""The policy that a run starts from: model, think markers and prompt, all of it checked.

Design: one function for the learner, which trains it, and for ``forethought doctor``, which only tells
whether a run would start. The price: the doctor loads the weights, so it does that for small ones only.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from forethought.compute.fp32_head import set_fp32_head
from forethought.compute.model import (
    LanguageModel,
    Markers,
    add_markers,
    find_markers,
    load_language_model,
    precision_of,
    stored_dtype,
)
from forethought.compute.precision import AUTO, Precision
from forethought.compute.prompting import prompting_of
from forethought.config import Settings
from forethought.errors import InvalidInput
from forethought.hub import model_folder
from forethought.objectives import Objective
from forethought.run.directory import RunDirectory
from forethought.special_tokens import special_tokens_of
from forethought.types import Prompting

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Policy:
    """A loaded model with the run's markers and prompt; those are None if the objective has no thoughts.

    ``new_ids`` are those of markers that the model did not have.

    Example:
        ``load_policy(settings, check_run(settings)).language_model``
    """

    language_model: LanguageModel
    markers: Markers | None
    prompting: Prompting | None
    new_ids: tuple[int, ...] = ()


def load_policy(settings: Settings, objective: Objective) -> Policy:
    """Load the configured model, add its markers if asked to, and check that the run's rows fit.

    Raises:
        InvalidInput: the model is unusable, or the run's rows do not fit (:func:`check_length`).
    """
    language_model = _model(settings)
    known_ids = set(language_model.tokenizer.get_vocab().values())
    markers = _markers(settings, language_model) if objective.needs_markers else None
    set_fp32_head(language_model.model, settings.model.fp32_head)  # markers may replace the head
    prompting = prompting_of(objective, language_model.tokenizer, markers) if markers else None
    check_length(settings, objective, language_model, prompting)
    used = (*markers.open_ids, *markers.close_ids) if markers else ()
    new_ids = tuple(token_id for token_id in used if token_id not in known_ids)
    return Policy(language_model, markers, prompting, new_ids)


def check_length(
    settings: Settings,
    objective: Objective,
    language_model: LanguageModel,
    prompting: Prompting | None,
) -> None:
    """Check that a window with its thought fits into the model's context and can be sampled.

    Raises:
        InvalidInput: it is longer than the model's context or than the length at which rotary frequencies
            change, or the torch engine is configured and cannot sample from this model.
    """
    needed = longest_row_tokens(settings, objective, language_model.tokenizer, prompting)
    if needed > language_model.max_length_tokens:
        raise InvalidInput(
            f"windows of {settings.corpus.window_tokens} tokens with their thoughts need {needed}, the "
            f"model takes {language_model.max_length_tokens}; lower corpus.window_tokens or "
            "sampling.max_thought_tokens"
        )
    consistency = language_model.consistency
    is_torch = settings.rollout.engine == "torch"
    fault = consistency.sampling_fault if is_torch else consistency.boundary_fault
    if prompting is not None and (reason := fault(needed)):
        raise InvalidInput(reason)


def longest_row_tokens(
    settings: Settings, objective: Objective, tokenizer: Any, prompting: Prompting | None
) -> int:
    """The length of a run's longest row: a window with what precedes it, its thought and its answer."""
    num_tokens = settings.corpus.window_tokens
    if prompting is None:
        return num_tokens + len(special_tokens_of(tokenizer).bos_ids)
    num_tokens += prompting.num_thinking_tokens + settings.sampling.max_thought_tokens
    return num_tokens + objective.prediction_tokens


def planned_precision(settings: Settings) -> Precision:
    """The type in which a run of these settings would compute, without loading its model.

    Raises:
        InvalidInput: the configuration of the model, or of the run's checkpoint, cannot be read.
    """
    section = settings.model
    kept = _kept_precision(settings)
    return kept or precision_of(
        model_folder(section.path, section.revision), section.dtype, section.device
    )


def _kept_precision(settings: Settings) -> Precision | None:
    """A run that is resumed computes as before, on whatever machine, unless another type is given."""
    checkpoint = RunDirectory(settings.run.directory).latest_checkpoint()
    if settings.model.dtype != AUTO or checkpoint is None:
        return None
    dtype = stored_dtype(checkpoint / "model")
    return None if dtype == AUTO else Precision(dtype, "as the run's checkpoint")


def _model(settings: Settings) -> LanguageModel:
    section = settings.model
    if not section.path:
        raise InvalidInput(
            "model.path is empty; expected the directory of a transformers causal language model, or its "
            "id on the Hugging Face hub (`forethought up` trains a small one from the corpus when there is "
            "none)"
        )
    kept = _kept_precision(settings)
    language_model = load_language_model(
        model_folder(section.path, section.revision),
        kept.dtype if kept else section.dtype,
        section.device,
        section.max_length_tokens,
        section.bos,
    )
    language_model.precision = kept or language_model.precision
    return language_model


def _markers(settings: Settings, language_model: LanguageModel) -> Markers:
    section = settings.model
    if section.add_think_tokens:
        add_markers(language_model, section.think_open, section.think_close)
    markers = find_markers(language_model.tokenizer, section.think_open, section.think_close)
    log.info("think markers: %s", markers)
    num_close, budget = len(markers.close_ids), settings.sampling.max_thought_tokens
    if num_close > budget:
        raise InvalidInput(
            f"think marker {section.think_close!r} is {num_close} tokens, sampling.max_thought_tokens "
            f"{budget}: no thought could close; expected more than {num_close}: raise it"
        )
    return markers
