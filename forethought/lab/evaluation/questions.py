"""The queries of an evaluation, the same for every model: positions, prompt, sampling.

Design: created once, with the first model's tokenizer, before any model is evaluated, so that no checkpoint
influences the choice of positions, except the first one when no proxy is given. The price is that the first
model is loaded twice.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from forethought.corpus.token_decoder import decoder_of
from forethought.errors import InvalidInput
from forethought.hub import model_folder
from forethought.lab.evaluation.request import Conditions, EvalRequest, Progress
from forethought.lab.evaluation.splits import NAMES, DrawnPositions, draw_positions
from forethought.lab.evaluation.text import (
    LengthLimit,
    candidate_positions,
    find_entropies,
    noise_marks,
    read_documents,
)
from forethought.objectives.parts.positions import at
from forethought.special_tokens import special_tokens_of
from forethought.types import Document, Prompting, Sampling

if TYPE_CHECKING:
    from forethought.compute.answers import Query
    from forethought.compute.model import LanguageModel, Markers
    from forethought.config.sections import ModelSection

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Questions:
    """The queries shared by all models: ``queries`` are those of ``drawn.places``, in the same order.

    ``vocabulary``, ``num_parameters`` and ``dtype`` are the first model's; ``proxy`` names the source of
    the entropies.

    Example:
        ``make_questions(request, conditions(request.checkpoints, request.overrides), progress).queries[0]``
    """

    documents: list[Document]
    queries: list[Query]
    drawn: DrawnPositions
    prompting: Prompting
    sampling: Sampling
    window_tokens: int
    vocabulary: dict[str, int]
    num_parameters: int
    dtype: str
    proxy: str


def make_questions(request: EvalRequest, given: Conditions, progress: Progress) -> Questions:
    """The questions of an eval request.

    Raises:
        InvalidInput: the first model, the corpus or the proxy is unusable, or no position fits.
    """
    from forethought.compute.answers import Query
    from forethought.compute.model import find_markers
    from forethought.compute.prompting import prompting_of

    section = given.settings.model
    model = load_model(request.checkpoints[0].model, request, section)
    log.info("computing in %s", model.precision)
    markers = find_markers(model.tokenizer, section.think_open, section.think_close)
    log.info("think markers: %s", markers)
    prompting = prompting_of(given.objective, model.tokenizer, markers)
    sampling = _sampling(given, model, markers)
    limit = _length_limit(given, model, markers, prompting, sampling)
    window_tokens = _window_tokens(request, given, model)
    documents, drawn, proxy = _drawn(request, given, model, window_tokens, limit, progress)
    queries = [
        Query(documents[place.document], position)
        for place in drawn.places
        for position in at(documents[place.document], [place.index], limit.target_tokens)
    ]
    return Questions(
        documents=documents,
        queries=queries,
        drawn=drawn,
        prompting=prompting,
        sampling=sampling,
        window_tokens=window_tokens,
        vocabulary=model.tokenizer.get_vocab(),
        num_parameters=sum(parameter.numel() for parameter in model.model.parameters()),
        dtype=model.precision.dtype,
        proxy=proxy,
    )


def load_model(path: Path, request: EvalRequest, section: ModelSection) -> LanguageModel:
    """Load a model directory, or a model of the hub, onto the request's device.

    BOS and markers are those of ``section``.

    Markers that ``model.add_think_tokens`` adds have the same random rows in every load.
    """
    import torch

    from forethought.compute.model import add_markers, load_language_model

    loaded = load_language_model(model_folder(path), request.dtype, request.device, bos=section.bos)
    if section.add_think_tokens:
        with torch.random.fork_rng():
            torch.manual_seed(request.seed)
            add_markers(loaded, section.think_open, section.think_close)
    return loaded


def check_vocabulary(model: LanguageModel, vocabulary: dict[str, int], label: str) -> None:
    """Check that a model has the given vocabulary.

    Raises:
        InvalidInput: its vocabulary differs.
    """
    if model.tokenizer.get_vocab() != vocabulary:
        raise InvalidInput(
            f"{label} has another vocabulary than the first checkpoint; expected the same one, because all "
            "are evaluated on the same tokens: evaluate them separately"
        )


def _sampling(given: Conditions, model: LanguageModel, markers: Markers) -> Sampling:
    """As in training: thoughts end at the close marker, predictions where the objective ends them."""
    from forethought.compute.prompting import end_ids

    section, objective = given.settings.sampling, given.objective
    return Sampling(
        section.group_size,
        section.max_thought_tokens,
        section.temperature,
        markers.stop_ids,
        objective.prediction_tokens,
        end_ids(model.model, model.tokenizer) if objective.prediction_ends else (),
        markers.stop_sequences,
    )


def _length_limit(
    given: Conditions,
    model: LanguageModel,
    markers: Markers,
    prompting: Prompting,
    sampling: Sampling,
) -> LengthLimit:
    target_tokens = getattr(given.objective.config, "target_tokens", 1)
    needed = prompting.num_thinking_tokens + sampling.max_response_tokens + target_tokens
    return LengthLimit(
        min(model.max_length_tokens, model.consistency.boundary_tokens) - needed,
        target_tokens,
        markers,
        decoder_of(model.tokenizer).unpredictable_ids(given.objective)
        if given.objective.prediction_tokens
        else frozenset(),
    )


def _window_tokens(request: EvalRequest, given: Conditions, model: LanguageModel) -> int:
    """The requested window length, or the run's capped at the model's maximum."""
    num_bos = len(special_tokens_of(model.tokenizer).bos_ids)
    wanted, longest = given.settings.corpus.window_tokens, model.max_length_tokens - num_bos
    if request.overrides.window_tokens and wanted > longest:
        raise InvalidInput(
            f"windows of {wanted} tokens; expected at most the model's {longest}: lower --window-tokens"
        )
    return min(wanted, longest)


def _drawn(
    request: EvalRequest,
    given: Conditions,
    model: LanguageModel,
    window_tokens: int,
    limit: LengthLimit,
    progress: Progress,
) -> tuple[list[Document], DrawnPositions, str]:
    """The documents, the drawn positions in them, and the source of the entropies."""
    section = given.settings.corpus.model_copy(update={"window_tokens": window_tokens})
    with TemporaryDirectory(prefix="forethought-eval-") as folder:
        cache = Path(folder)
        documents = read_documents(
            section, model.tokenizer, request.num_documents, request.seed, cache
        )
        marked = noise_marks(section, model.tokenizer, request.noise, request.seed, cache)
    entropies, proxy = _entropies(request, documents, model, given.settings.model, progress)
    places = candidate_positions(documents, entropies, marked, request.noise, limit)
    if not places:
        raise InvalidInput(
            f"no position of {len(documents)} windows can be evaluated: prompt, thought, target leave "
            f"{max(0, limit.max_index)} of the model's {model.max_length_tokens} tokens for a context, and "
            "no think marker is a target; expected one token at least: lower --max-thought-tokens, choose "
            "--prompt plain, or give text without thoughts"
        )
    pattern = request.overrides.marks_pattern
    if pattern and not any(place.is_marked for place in places):
        raise InvalidInput(
            f"--marks-pattern {pattern!r} marks none of the {len(places)} positions of {len(documents)} "
            "windows; expected matches in their text: correct it, or raise --num-documents"
        )
    return documents, draw_positions(places, NAMES, request.num_positions, request.seed), proxy


def _entropies(
    request: EvalRequest,
    documents: Sequence[Document],
    first: LanguageModel,
    section: ModelSection,
    progress: Progress,
) -> tuple[Sequence[Sequence[float]], str]:
    """One entropy per token, and the source of the entropies."""
    if request.proxy is None and all(document.entropies_N for document in documents):
        return [document.entropies_N for document in documents], "the corpus's own entropies"
    proxy = first
    if request.proxy is not None:
        proxy = load_model(request.proxy, request, section)
        check_vocabulary(proxy, first.tokenizer.get_vocab(), str(request.proxy))
    num_documents = len(documents)
    found = find_entropies(proxy, documents, lambda n: progress("entropies", n, num_documents))
    name = (
        str(request.proxy)
        if request.proxy
        else f"{request.checkpoints[0].label} (the first checkpoint)"
    )
    return found, name
