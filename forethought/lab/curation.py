"""Curation: annotate the tokens of a corpus with the entropy of predicting each (RPT, section 3.3).

Design: the proxy reads every window once and writes Parquet parts that the corpus reads like any other
source: training on them needs no proxy. A part is written atomically, so that a killed process resumes
with the first missing part, and n machines with one shard each can share a folder. The settings are
stored in ``.curation.json`` and in every part, and a process with different settings is refused. The
price: windows are fixed by this run, so entropies ignore the text before a window's start, and an
interrupted part is recomputed as a whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from forethought.compute.entropy import EntropyQuery, entropies
from forethought.compute.finite import check_finite
from forethought.compute.model import LanguageModel, load_language_model
from forethought.config.sections import SourceSection
from forethought.corpus.mixture import digest_of
from forethought.corpus.sources import open_source
from forethought.corpus.windows import cut_windows
from forethought.errors import InvalidInput
from forethought.hub import model_folder
from forethought.special_tokens import Choice, special_tokens_of

PART_WINDOWS = 256
_SETTINGS_FILE = ".curation.json"
_METADATA_KEY = b"forethought.curation"


@dataclass(frozen=True, slots=True)
class CurationSettings:
    """The settings that determine the entropies; the same for all shards of a folder.

    ``corpus`` is a digest of the windows, ``model`` the proxy's directory as given, or
    ``owner/name@commit``.

    Example:
        ``CurationSettings("9f…", "models/proxy", 2048, top_k=16, renormalised=False, num_shards=4)``
    """

    corpus: str
    model: str
    window_tokens: int
    top_k: int
    renormalised: bool
    num_shards: int
    bos: Choice = "tokenizer"
    eos: Choice = "tokenizer"
    dtype: str = "float32"
    marks_pattern: str = ""


@dataclass(frozen=True, slots=True)
class CurationRequest:
    """The corpus, the proxy and the shard (counted from 1) of a curation.

    Example:
        ``CurationRequest(SourceSection(path="books"), Path("models/proxy"), Path("curated"), shard=1)``
    """

    source: SourceSection
    model: Path
    out: Path
    window_tokens: int = 256
    top_k: int = 16
    renormalise: bool = False
    shard: int = 1
    num_shards: int = 1
    device: str = "auto"
    dtype: str = "float32"
    bos: Choice = "tokenizer"
    eos: Choice = "tokenizer"
    max_batch_tokens: int = 16_384
    part_windows: int = field(default=PART_WINDOWS)


def curate(request: CurationRequest, report: Callable[[int, int], None]) -> int:
    """Write the missing parts of a shard; returns the number of windows of the shard.

    ``report(num_done, num_windows)`` is called after every part, and once before the first.

    Raises:
        InvalidInput: the corpus or the model cannot be read, the shard is invalid, or the folder was
            started with other settings.
    """
    _check_shard(request)
    language_model = load_language_model(
        model_folder(request.model), request.dtype, request.device, bos=request.bos
    )
    _check_length(request, language_model)
    cache = request.out / f".cache-{request.shard}"  # one per shard: shards start at the same time
    windows = cut_windows(
        open_source(request.source, cache),
        language_model.tokenizer,
        request.window_tokens,
        2,
        cache,
        request.eos,
        request.source.marks_pattern,
    )
    settings = _settings(request, windows, language_model.precision.dtype)
    _claim(request.out, settings)
    mine = range(request.shard - 1, len(windows), request.num_shards)
    report(0, len(mine))
    for number, first in enumerate(range(0, len(mine), request.part_windows)):
        part = mine[first : first + request.part_windows]
        path = request.out / f"part-{request.shard}-of-{request.num_shards}-{number:05d}.parquet"
        if not path.exists():
            _write(path, _annotated(windows[list(part)], request, language_model), settings)
        report(first + len(part), len(mine))
    return len(mine)


def _annotated(
    windows: dict[str, list[Any]], request: CurationRequest, language_model: LanguageModel
) -> dict[str, list[Any]]:
    """The columns of a part; the first token of a window is never predicted and has entropy 0."""
    bos_ids = special_tokens_of(language_model.tokenizer).bos_ids
    queries = [
        EntropyQuery(tuple(ids), request.top_k, request.renormalise, bos_ids)
        for ids in windows["token_ids"]
    ]
    found = entropies(language_model.model, queries, request.max_batch_tokens)
    check_finite(language_model.model, chain.from_iterable(found), "an entropy")
    return {
        "document_id": windows["document_id"],
        "token_ids": windows["token_ids"],
        "entropies": [[0.0, *map(_at_least_zero, of_window)] for of_window in found],
        request.source.marks_field: windows["marks"],
    }


def _at_least_zero(entropy: float) -> float:
    return max(0.0, entropy)  # rounding may make it slightly negative


def _write(path: Path, columns: dict[str, list[Any]], settings: CurationSettings) -> None:
    """Write one part atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"document_id": pa.string(), "entropies": pa.list_(pa.float32())}
    schema = pa.schema(
        [(name, types.get(name, pa.list_(pa.int32()))) for name in columns],
        metadata={_METADATA_KEY: json.dumps(asdict(settings))},
    )
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(pa.table(columns, schema=schema), partial, compression="zstd")
    partial.replace(path)


def _settings(request: CurationRequest, windows: Any, dtype: str) -> CurationSettings:
    return CurationSettings(
        corpus=digest_of(windows),
        model=str(request.model),
        window_tokens=request.window_tokens,
        top_k=request.top_k,
        renormalised=request.renormalise,
        num_shards=request.num_shards,
        bos=request.bos,
        eos=request.eos,
        dtype=dtype,
        marks_pattern=request.source.marks_pattern,
    )


def _claim(out: Path, settings: CurationSettings) -> None:
    """Write the settings of a new folder, or compare them with those of an existing one."""
    path, mine = out / _SETTINGS_FILE, asdict(settings)
    if not path.exists():
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(mine, indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
    begun = json.loads(path.read_text(encoding="utf-8"))
    if begun != mine:
        differing = sorted(key for key in mine if begun.get(key) != mine[key])
        raise InvalidInput(
            f"{out} was started with other settings: "
            + ", ".join(f"{key} {begun.get(key)!r}, now {mine[key]!r}" for key in differing)
            + "; expected the same settings: repeat them, or choose another --out"
        )


def _check_shard(request: CurationRequest) -> None:
    if not 1 <= request.shard <= request.num_shards:
        raise InvalidInput(
            f"got shard {request.shard}/{request.num_shards}; expected i/n with i from 1 to n"
        )


def _check_length(request: CurationRequest, language_model: LanguageModel) -> None:
    num_bos = len(special_tokens_of(language_model.tokenizer).bos_ids)
    longest = language_model.max_length_tokens - num_bos
    if not 2 <= request.window_tokens <= longest:
        raise InvalidInput(
            f"got windows of {request.window_tokens} tokens; expected 2 to the proxy's "
            f"{longest}: change --window-tokens"
        )
