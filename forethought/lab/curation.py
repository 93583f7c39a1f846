"""Curation: a corpus becomes its own tokens with the entropy of predicting each (RPT, section 3.3).

Design: the proxy reads every window once, and what it leaves are Parquet parts that the corpus reads like
any other: training on them needs no proxy. A part is written whole or not at all, so that a run that was
killed goes on with the first part that is missing, and n machines with a shard each share one folder. The
settings stand in ``.curation.json`` and in every part, and another run with others is refused. The price:
windows are those of this run, so entropies know nothing of the text before a window's cut, and a part's
windows are read together or again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from forethought.compute.entropy import EntropyQuery, entropies
from forethought.compute.model import LanguageModel, load_language_model
from forethought.config.sections import SourceSection
from forethought.corpus.mixture import digest_of
from forethought.corpus.sources import open_source
from forethought.corpus.windows import cut_windows
from forethought.errors import InvalidInput

PART_WINDOWS = 256
_SETTINGS_FILE = ".curation.json"
_METADATA_KEY = b"forethought.curation"


@dataclass(frozen=True, slots=True)
class CurationSettings:
    """What decides the numbers; the same for all shards of a folder.

    ``corpus`` is a digest of the windows, ``model`` the proxy's directory as it was named.

    Example:
        ``CurationSettings("9f…", "models/proxy", 2048, top_k=16, renormalised=False, num_shards=4)``
    """

    corpus: str
    model: str
    window_tokens: int
    top_k: int
    renormalised: bool
    num_shards: int


@dataclass(frozen=True, slots=True)
class CurationRequest:
    """What to curate, with what, and which shard of it (from 1).

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
    max_batch_tokens: int = 16_384
    part_windows: int = field(default=PART_WINDOWS)


def curate(order: CurationRequest, report: Callable[[int, int], None]) -> int:
    """Write the parts of a shard that are missing; returns how many windows the shard has.

    ``report(num_done, num_windows)`` is called after every part, and once before the first.

    Raises:
        InvalidInput: the corpus or the model cannot be read, a shard that is none, or a folder that was
            begun with other settings.
    """
    _check_shard(order)
    language_model = load_language_model(order.model, order.dtype, order.device)
    _check_length(order, language_model)
    cache = order.out / f".cache-{order.shard}"  # its own: shards start at the same time
    windows = cut_windows(
        open_source(order.source, cache), language_model.tokenizer, order.window_tokens, 2, cache
    )
    settings = _settings(order, windows)
    _claim(order.out, settings)
    mine = range(order.shard - 1, len(windows), order.num_shards)
    report(0, len(mine))
    for number, first in enumerate(range(0, len(mine), order.part_windows)):
        part = mine[first : first + order.part_windows]
        path = order.out / f"part-{order.shard}-of-{order.num_shards}-{number:05d}.parquet"
        if not path.exists():
            _write(path, _annotated(windows[list(part)], order, language_model), settings)
        report(first + len(part), len(mine))
    return len(mine)


def _annotated(
    windows: dict[str, list[Any]], order: CurationRequest, language_model: LanguageModel
) -> dict[str, list[Any]]:
    """The columns of a part; the first token of a window is predicted by nothing and has entropy 0."""
    queries = [
        EntropyQuery(tuple(ids), order.top_k, order.renormalise) for ids in windows["token_ids"]
    ]
    found = entropies(language_model.model, queries, order.max_batch_tokens)
    return {
        "document_id": windows["document_id"],
        "token_ids": windows["token_ids"],
        "entropies": [[0.0, *map(_at_least_zero, of_window)] for of_window in found],
        order.source.marks_field: windows["marks"],
    }


def _at_least_zero(entropy: float) -> float:
    return max(0.0, entropy)  # a certain token's may be a rounding below


def _write(path: Path, columns: dict[str, list[Any]], settings: CurationSettings) -> None:
    """One part, under its name only once it is whole."""
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


def _settings(order: CurationRequest, windows: Any) -> CurationSettings:
    return CurationSettings(
        corpus=digest_of(windows),
        model=str(order.model),
        window_tokens=order.window_tokens,
        top_k=order.top_k,
        renormalised=order.renormalise,
        num_shards=order.num_shards,
    )


def _claim(out: Path, settings: CurationSettings) -> None:
    """Write the settings of a new folder, or compare those of one that was begun."""
    path, mine = out / _SETTINGS_FILE, asdict(settings)
    if not path.exists():
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(mine, indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
    begun = json.loads(path.read_text(encoding="utf-8"))
    if begun != mine:
        differing = sorted(key for key in mine if begun.get(key) != mine[key])
        raise InvalidInput(
            f"{out} was begun with other settings: "
            + ", ".join(f"{key} {begun.get(key)!r}, now {mine[key]!r}" for key in differing)
            + "; expected the same ones: repeat them, or choose another --out"
        )


def _check_shard(order: CurationRequest) -> None:
    if not 1 <= order.shard <= order.num_shards:
        raise InvalidInput(
            f"got shard {order.shard}/{order.num_shards}; expected i/n with i from 1 to n"
        )


def _check_length(order: CurationRequest, language_model: LanguageModel) -> None:
    if not 2 <= order.window_tokens <= language_model.max_length_tokens:
        raise InvalidInput(
            f"got windows of {order.window_tokens} tokens; expected 2 to the proxy's "
            f"{language_model.max_length_tokens}: change --window-tokens"
        )
