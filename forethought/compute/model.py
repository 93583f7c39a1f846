"""Load a causal LM with its tokenizer, and validate both.

Design: any directory that transformers' Auto classes load, without remote code or downloads. A think marker
is the ids of its text, tokenised alone and without BOS or end of text: usually one token (that the
tokenizer has, or that ``add_markers`` adds, and every snapshot then includes), else ordinary text of
several. The price of several: a model that merges the text with what precedes it (a full stop with the line
breaks before "Answer:") writes other tokens, and its thought does not end there.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import tokenizers
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.utils import GENERATION_CONFIG_NAME

from forethought.compute.consistency import Consistency, measure_consistency
from forethought.compute.forms import note_forms
from forethought.compute.fp32_head import install_fp32_head
from forethought.compute.new_tokens import add_special_tokens
from forethought.compute.precision import AUTO, DTYPES, Precision, choose_precision, slowness
from forethought.errors import InvalidInput, one_line
from forethought.special_tokens import Choice, choose_bos
from forethought.stops import Stops

log = logging.getLogger(__name__)

_LOCAL = {"local_files_only": True, "trust_remote_code": False}  # False: refuse without a prompt
_TOKENIZER_FILES = (
    "the files that save_pretrained writes (tokenizer.json, tokenizer_config.json), readable by "
    f"tokenizers {tokenizers.__version__}"
)
_MODEL_FILES = "a directory that AutoModelForCausalLM loads (config.json, model.safetensors)"
MODEL_FILE_SUFFIXES = (".json", ".txt", ".model", ".jinja")
# While loading, transformers patches weight tying process-wide. Two overlapping loads (a reward replica's
# policy and baseline) would leave the patch in place, and every later model untied.
ONE_LOAD_AT_A_TIME = Lock()


@dataclass(frozen=True, slots=True)
class Markers:
    """The token ids of the think-open and the think-close marker, one or several each.

    Example:
        ``Markers(open_ids=(39,), close_ids=(13, 7, 9))``
    """

    open_ids: tuple[int, ...]
    close_ids: tuple[int, ...]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """For :class:`Sampling`: the close marker if it is one token."""
        return self.close_ids if len(self.close_ids) == 1 else ()

    @property
    def stop_sequences(self) -> tuple[tuple[int, ...], ...]:
        """For :class:`Sampling`: the close marker if it is several tokens."""
        return (self.close_ids,) if len(self.close_ids) > 1 else ()

    @property
    def are_single(self) -> bool:
        """Whether each is one token."""
        return len(self.open_ids) == len(self.close_ids) == 1

    def occur_in(self, token_ids: Sequence[int]) -> bool:
        """Whether one of them is among these tokens."""
        whole = Stops(sequences=(self.open_ids, self.close_ids))
        return whole.end(token_ids) is not None

    def __str__(self) -> str:
        return f"{_form(self.open_ids)} and {_form(self.close_ids)}"


@dataclass(slots=True)
class LanguageModel:
    """A causal LM, its tokenizer, its maximum input length, where its passes differ, and its type.

    Example:
        ``load_language_model("models/base", "float32", "cpu")``
    """

    model: Any
    tokenizer: Any
    max_length_tokens: int
    consistency: Consistency = field(default_factory=Consistency)
    precision: Precision = field(default_factory=Precision)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        device: torch.device = next(iter(self.model.parameters())).device
        return device

    @property
    def vocabulary(self) -> int:
        """The number of embeddings: token ids are below it."""
        return int(self.model.get_input_embeddings().num_embeddings)


def resolve_device(name: str) -> torch.device:
    """Resolve a device name; ``auto`` is the first GPU, or the CPU without one.

    Raises:
        InvalidInput: torch does not know the device, or this machine does not have it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidInput(
            f"device {name!r} is unknown to torch; expected auto, cpu, cuda or cuda:N"
        ) from error
    num_gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= num_gpus:
        raise InvalidInput(
            f"device {name!r}: torch sees {num_gpus} GPUs here; expected auto or cpu"
        )
    return device


def load_tokenizer(path: str | Path, bos: Choice = "tokenizer") -> Any:
    """The tokenizer of a model directory, its BOS by ``model.bos``.

    Raises:
        InvalidInput: the directory or its tokenizer cannot be read, or the choice does not fit it.
    """
    _require_directory(path)
    with _one_line("tokenizer", path, _TOKENIZER_FILES):
        tokenizer = AutoTokenizer.from_pretrained(str(path), **_LOCAL)
        if not tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys():
            raise ValueError("its vocabulary is empty")  # some classes load without any files
    choose_bos(tokenizer, bos)
    return tokenizer


def check_model_files(path: str | Path) -> None:
    """Check a model directory's configurations in moments, without its weights.

    Raises:
        InvalidInput: as :func:`load_language_model` for all that does not depend on weights and tokenizer.
    """
    _require_directory(path)
    with _one_line("causal language model", path, _MODEL_FILES):
        config = AutoConfig.from_pretrained(str(path), **_LOCAL)
        _check_quantization(config)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
        if (Path(path) / GENERATION_CONFIG_NAME).is_file():
            model.generation_config = GenerationConfig.from_pretrained(
                str(path), local_files_only=True
            )
    _check_generation(model, path)


def load_language_model(
    path: str | Path,
    dtype: str,
    device: str,
    max_length_tokens: int = 0,
    bos: Choice = "tokenizer",
) -> LanguageModel:
    """Load and validate a model directory, in evaluation mode.

    Its rows are computed in the fastest exact form from then on (:mod:`forethought.compute.consistency`).
    A model that ``auto`` would compute in bfloat16, and that cannot (it mixes types, or overflows), is
    loaded in float32.

    Args:
        path: the directory.
        dtype: a value of ``model.dtype``; the result's ``precision`` says what became of ``auto``.
        device: a device's name, or ``auto``.
        max_length_tokens: of a row; 0: the model's own limit.
        bos: a value of ``model.bos``.

    Raises:
        InvalidInput: unreadable, not a causal LM, incomplete, or its tokenizer has ids the model lacks.
    """
    tokenizer = load_tokenizer(path, bos)
    chosen = precision_of(path, dtype, device)
    fallback = Precision("float32", "bfloat16 fails")
    load = partial(_load, path, tokenizer, device=device, max_length_tokens=max_length_tokens)
    if dtype != AUTO or chosen.dtype == fallback.dtype:
        return load(chosen)
    with suppress(InvalidInput):
        loaded = load(chosen)
        if not loaded.consistency.weights_fault:
            return loaded
        del loaded
    return load(fallback)


def precision_of(path: str | Path, dtype: str, device: str) -> Precision:
    """The type in which a model directory would be computed, by its configuration alone.

    Raises:
        InvalidInput: the configuration cannot be read.
    """
    _require_directory(path)
    with _one_line("causal language model", path, _MODEL_FILES):
        config = AutoConfig.from_pretrained(str(path), **_LOCAL)
    return choose_precision(dtype, text_config(config), resolve_device(device))


def stored_dtype(path: str | Path) -> str:
    """The type that a model directory was saved in, if a model can compute in it; else ``auto``.

    Raises:
        InvalidInput: the configuration cannot be read.
    """
    with _one_line("causal language model", path, _MODEL_FILES):
        config = AutoConfig.from_pretrained(str(path), **_LOCAL)
    names = [name for name, dtype in DTYPES.items() if dtype == config.dtype]
    return names[0] if names else AUTO


def _load(
    path: str | Path, tokenizer: Any, precision: Precision, device: str, max_length_tokens: int
) -> LanguageModel:
    with ONE_LOAD_AT_A_TIME, _one_line("causal language model", path, _MODEL_FILES):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(path), dtype=DTYPES[precision.dtype], output_loading_info=True, **_LOCAL
        )
    model, loading = loaded
    _check_complete(loading["missing_keys"], path)
    _check_vocabulary(model, tokenizer, path)
    _check_generation(model, path)
    model.eval()
    model.to(resolve_device(device))
    install_fp32_head(model)
    longest = model_length(model.config)
    length = min(max_length_tokens or longest, longest)
    consistency = choose_forms(model, _ordinary_ids(tokenizer), length)
    if slow := slowness(precision.dtype, text_config(model.config), resolve_device(device)):
        log.warning("%s", slow)
    for note in consistency.notes():
        log.log(logging.WARNING if consistency.is_harmful else logging.INFO, "%s: %s", path, note)
    return LanguageModel(model, tokenizer, length, consistency, precision)


def choose_forms(model: Any, token_ids: Sequence[int], max_length_tokens: int) -> Consistency:
    """Have a model computed in its fastest exact forms from now on; the arguments are those of
    :func:`measure_consistency`, which says what it found.
    """
    apply_soft_caps(model)
    config = text_config(model.config)
    consistency = measure_consistency(model, config, token_ids, max_length_tokens)
    note_forms(model, consistency.forms)
    return consistency


def apply_soft_caps(model: Any) -> None:
    """Have soft caps on attention scores count: SDPA ignores them, and some releases use it."""
    config = text_config(model.config)
    if getattr(config, "attn_logit_softcapping", None) and config._attn_implementation == "sdpa":
        model.set_attn_implementation("eager")


def text_config(config: Any) -> Any:
    """The text model's part of a composite configuration (text and images), else the configuration itself.

    Sizes such as ``hidden_size`` are read from it: a composite configuration has none of its own.
    """
    find = getattr(config, "get_text_config", None)
    return find(decoder=True) if find else config


def model_length(config: Any) -> int:
    """The maximum input length in tokens according to a model configuration."""
    of_text = text_config(config)
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        length = getattr(of_text, name, None)
        if isinstance(length, int) and length > 0:
            return length
    return 1 << 20  # models without a positional limit (state space models)


def find_markers(tokenizer: Any, think_open: str, think_close: str) -> Markers:
    """The token ids of the think markers.

    Raises:
        InvalidInput: a marker is empty or unknown to the tokenizer, or both are the same.
    """
    markers = Markers(_marker_ids(tokenizer, think_open), _marker_ids(tokenizer, think_close))
    if markers.open_ids == markers.close_ids:
        raise InvalidInput(
            f"both think markers are {_form(markers.open_ids)}; expected two different ones"
        )
    _check_own_ids(tokenizer, think_open, think_close)
    return markers


def add_markers(language_model: LanguageModel, think_open: str, think_close: str) -> None:
    """Add missing markers as special tokens, with new ids and embeddings of their own.

    Raises:
        InvalidInput: see :func:`forethought.compute.new_tokens.add_special_tokens`.
    """
    markers = (think_open, think_close)
    add_special_tokens(language_model.model, language_model.tokenizer, markers)
    install_fp32_head(language_model.model)  # new rows may come with a new head


def read_model_files(directory: str | Path) -> dict[str, bytes]:
    """Configuration and tokenizer files of a model directory, by name, without weights."""
    return {
        file.name: file.read_bytes()
        for file in sorted(Path(directory).iterdir())
        if file.is_file()
        and file.suffix in MODEL_FILE_SUFFIXES
        and not file.name.endswith(".index.json")
    }


def _marker_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    ids = tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    if not ids or tokenizer.unk_token_id in ids:
        raise InvalidInput(
            f"think marker {text!r} is {len(ids)} tokens {list(ids)} of this tokenizer; expected known "
            "tokens, one at least: set model.think_open / model.think_close to text it has, or "
            "model.add_think_tokens=true to add them"
        )
    return ids


def _form(marker_ids: tuple[int, ...]) -> str:
    """A marker for messages: which tokens, and as what."""
    if len(marker_ids) == 1:
        return f"token {marker_ids[0]}"
    return f"ordinary text of {len(marker_ids)} tokens {list(marker_ids)}"


def _check_own_ids(tokenizer: Any, *markers: str) -> None:
    """Refuse a marker whose id another token has, as tokens added to a vocabulary with holes do."""
    vocabulary = tokenizer.get_vocab()
    marker_of = {vocabulary[text]: text for text in markers if text in vocabulary}
    for name, token_id in vocabulary.items():
        if token_id in marker_of and name != marker_of[token_id]:
            raise InvalidInput(
                f"think marker {marker_of[token_id]!r} and token {name!r} are both id {token_id} of this "
                "tokenizer; expected ids of their own: add the markers to the original model again"
            )


def _check_complete(missing: Collection[str], path: str | Path) -> None:
    """Refuse missing tensors: transformers would initialise them randomly and continue."""
    if missing:
        raise InvalidInput(
            f"the weights in {path} lack {len(missing)} tensors of the model, such as {min(missing)}; "
            "expected a complete causal language model as written by save_pretrained"
        )


def _check_quantization(config: Any) -> None:
    """Raise what loading would raise if the library of the weights' quantization is missing."""
    found = (getattr(c, "quantization_config", None) for c in (config, text_config(config)))
    given = next(filter(None, found), None)
    if given is not None and AutoHfQuantizer.supports_quant_method(given):
        quantizer = AutoHfQuantizer.from_config(given, pre_quantized=True)
        quantizer.validate_environment(device_map=None, weights_only=True)


def _check_generation(model: Any, path: str | Path) -> None:
    """Refuse a generation_config.json that loads but cannot be saved: no checkpoint could be written."""
    if model.generation_config is None:  # of a model without a generate method
        return
    try:
        model.generation_config.validate(strict=True)
    except ValueError as error:
        raise InvalidInput(
            f"generation_config.json in {path} cannot be saved again, so neither can a checkpoint: "
            f'{one_line(error)}; expected consistent flags: add "do_sample": true, or remove them'
        ) from error


def _check_vocabulary(model: Any, tokenizer: Any, path: str | Path) -> None:
    rows = model.get_input_embeddings().num_embeddings
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= rows:
        raise InvalidInput(
            f"the tokenizer in {path} has token id {largest}, the model only {rows} embeddings; "
            "expected a model and its own tokenizer"
        )


def _ordinary_ids(tokenizer: Any) -> list[int]:
    """Token ids of text; special tokens may stand for padding or images."""
    special = tokenizer.get_added_vocab().keys()
    return sorted(id_ for token, id_ in tokenizer.get_vocab().items() if token not in special)


def _require_directory(path: str | Path) -> None:
    if not Path(path).is_dir():
        raise InvalidInput(
            f"model directory {str(path)!r} does not exist; expected a local directory"
        )


@contextmanager
def _one_line(what: str, path: str | Path, expected: str) -> Iterator[None]:
    """Turn what the libraries raise about a directory into one line; they may raise anything."""
    try:
        yield
    except (MemoryError, InvalidInput):
        raise
    except ImportError as error:
        raise InvalidInput(
            f"the {what} in {path} needs a library that is not installed: {one_line(error)}; "
            "install it, or give a model that does not need it"
        ) from error
    except Exception as error:
        raise InvalidInput(
            f"no {what} in {path}: {one_line(error)}; expected {expected}"
        ) from error
