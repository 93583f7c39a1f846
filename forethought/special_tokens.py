"""The special tokens that a tokenizer puts around a text: BOS before it, end-of-text after it.

Design: the tokenizer's own convention, found by encoding a text with and without special tokens, because no
attribute states it reliably (a post-processor, ``add_bos_token``, a class's own code). It then holds for
every row of tokens alike: the BOS precedes windows, prompts and requests exactly once, and
end-of-text follows whole documents only. ``model.bos`` changes the tokenizer and not its readers, so that
checkpoints and snapshots carry the choice, and neither replicas nor `eval` need the setting. The price:
with a choice of its own, a run's tokenizer is no longer byte for byte the original's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from forethought.errors import InvalidInput

Choice = Literal["tokenizer", "always", "never"]
"""Whose decision a special token is: the tokenizer's own, or the configuration's."""

_PROBES = ("a", "0", "the")
_NUM_PROBES = 64  # of the vocabulary's own tokens, for one that knows none of the above
_ADDING = ("TemplateProcessing", "BertProcessing", "RobertaProcessing")
_WITHOUT_BOS = "{%- set bos_token = '' -%}"


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """What a tokenizer puts before and after a text: usually one token or none each.

    Example:
        ``SpecialTokens(bos_ids=(1,))`` of Llama and Gemma, ``SpecialTokens()`` of GPT-2 and Qwen
    """

    bos_ids: tuple[int, ...] = ()
    eos_ids: tuple[int, ...] = ()

    def without_bos(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """``token_ids`` without the BOS that they begin with, however often."""
        return _without_prefix(tuple(token_ids), self.bos_ids)

    def with_bos(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """``token_ids`` after exactly one BOS, whether or not they begin with it."""
        return self.bos_ids + self.without_bos(token_ids)


def special_tokens_of(tokenizer: Any) -> SpecialTokens:
    """The convention of a tokenizer.

    Raises:
        InvalidInput: it encodes a text differently with and without special tokens.
    """
    for text in _probes(tokenizer):
        bare = _encoded(tokenizer, text, add_special_tokens=False)
        if not bare:  # a text of which the vocabulary has nothing
            continue
        whole = _encoded(tokenizer, text, add_special_tokens=True)
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return SpecialTokens(whole[:start], whole[start + len(bare) :])
        raise InvalidInput(
            f"{type(tokenizer).__name__} encodes {text!r} as {list(whole)} with special tokens and as "
            f"{list(bare)} without; expected the same tokens between the special ones"
        )
    return SpecialTokens()


def choose_bos(tokenizer: Any, choice: Choice) -> None:
    """Make a tokenizer put its BOS token before every text, or nothing; "tokenizer" leaves it as it is.

    With "never", its chat template renders no BOS token either.

    Raises:
        InvalidInput: the tokenizer has no BOS token, or is not a fast one.
    """
    if choice == "never":
        _render_without_bos(tokenizer)
    found = special_tokens_of(tokenizer)
    if choice == "tokenizer" or (choice == "always") == bool(found.bos_ids):
        return
    if choice == "never":
        _replace_convention(tokenizer, SpecialTokens((), found.eos_ids))
        return
    if tokenizer.bos_token_id is None:
        raise InvalidInput(
            f"model.bos=always: {type(tokenizer).__name__} has no BOS token; expected one: set bos_token "
            "in tokenizer_config.json, or model.bos=tokenizer"
        )
    _replace_convention(tokenizer, SpecialTokens((tokenizer.bos_token_id,), found.eos_ids))


def drop_eos(tokenizer: Any) -> None:
    """Make a tokenizer put nothing after a text: for prompts, which are to be continued.

    Raises:
        InvalidInput: it would have to be changed, and is not a fast one.
    """
    found = special_tokens_of(tokenizer)
    if found.eos_ids:
        _replace_convention(tokenizer, SpecialTokens(found.bos_ids))


def document_end(tokenizer: Any, choice: Choice) -> tuple[int, ...]:
    """The tokens after a whole document, by ``corpus.eos``.

    Raises:
        InvalidInput: "always", and the tokenizer has no end-of-text token.
    """
    if choice == "never":
        return ()
    found = special_tokens_of(tokenizer).eos_ids
    if choice == "tokenizer" or found:
        return found
    if tokenizer.eos_token_id is None:
        raise InvalidInput(
            f"corpus.eos=always: {type(tokenizer).__name__} has no end-of-text token; expected one: set "
            "eos_token in tokenizer_config.json, or corpus.eos=tokenizer"
        )
    return (tokenizer.eos_token_id,)


def _probes(tokenizer: Any) -> Iterator[str]:
    yield from _PROBES
    added = tokenizer.get_added_vocab()
    ordinary = (token for token in tokenizer.get_vocab() if token not in added)
    for token, _ in zip(ordinary, range(_NUM_PROBES), strict=False):
        yield tokenizer.convert_tokens_to_string([token])


def _encoded(tokenizer: Any, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
    encoded = tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)
    return tuple(encoded["input_ids"])


def _without_prefix(token_ids: tuple[int, ...], prefix: tuple[int, ...]) -> tuple[int, ...]:
    while prefix and token_ids[: len(prefix)] == prefix:
        token_ids = token_ids[len(prefix) :]
    return token_ids


def _replace_convention(tokenizer: Any, wanted: SpecialTokens) -> None:
    """Give a fast tokenizer a post-processor that adds exactly ``wanted``; its other parts stay."""
    if not tokenizer.is_fast:
        raise InvalidInput(
            f"{type(tokenizer).__name__} is a slow tokenizer, whose special tokens cannot be changed; "
            "expected a fast one (tokenizer.json), or model.bos=tokenizer"
        )
    from tokenizers import Tokenizer, models

    backend = tokenizer.backend_tokenizer
    before = json.loads(backend.to_str())["post_processor"]
    kept = [part for part in _parts(before) if part["type"] not in _ADDING]
    template = _template(tokenizer, wanted)
    after = {"type": "Sequence", "processors": [*kept, template]} if kept else template
    empty = json.loads(Tokenizer(models.BPE()).to_str())  # a whole one takes a second to parse
    parsed = Tokenizer.from_str(json.dumps(empty | {"post_processor": after}))
    backend.post_processor = parsed.post_processor


def _parts(processor: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A serialised post-processor as a list, whether or not it is a sequence."""
    if processor is None:
        return []
    if processor["type"] != "Sequence":
        return [processor]
    return [part for nested in processor["processors"] for part in _parts(nested)]


def _template(tokenizer: Any, wanted: SpecialTokens) -> dict[str, Any]:
    """A serialised post-processor that adds ``wanted`` around a text, and around each of a pair."""
    groups = {
        name: list(ids) for name, ids in (("bos", wanted.bos_ids), ("eos", wanted.eos_ids)) if ids
    }

    def around(sequence: str, type_id: int) -> list[dict[str, Any]]:
        text = {"Sequence": {"id": sequence, "type_id": type_id}}
        special = {name: {"SpecialToken": {"id": name, "type_id": type_id}} for name in groups}
        return [*_present(special, "bos"), text, *_present(special, "eos")]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {
            name: {"id": name, "ids": ids, "tokens": tokenizer.convert_ids_to_tokens(ids)}
            for name, ids in groups.items()
        },
    }


def _present(values: dict[str, Any], name: str) -> list[Any]:
    return [values[name]] if name in values else []


def _render_without_bos(tokenizer: Any) -> None:
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, str) and not template.startswith(_WITHOUT_BOS):
        tokenizer.chat_template = _WITHOUT_BOS + template
