"""The special tokens around a text: found, applied once, changed so that the change is saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, BertTokenizerLegacy, GemmaTokenizer, LlamaTokenizer
from transformers import PreTrainedTokenizerFast as FastTokenizer

from forethought.errors import InvalidInput
from forethought.special_tokens import (
    SpecialTokens,
    choose_bos,
    document_end,
    drop_eos,
    special_tokens_of,
)

WORDS = {word: i for i, word in enumerate(("<unk>", "<s>", "</s>", "[gMASK]", "amber", "bear"))}
BOS, EOS, MASK = 1, 2, 3


def word_tokenizer(post_processor: Any = None, **special: str) -> Any:
    core = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if post_processor is not None:
        core.post_processor = post_processor
    given = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"} | special
    return FastTokenizer(tokenizer_object=core, **given)


def template(single: str) -> Any:
    ids = [("<s>", BOS), ("</s>", EOS), ("[gMASK]", MASK)]
    return processors.TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=ids)


def of_class(kind: Any) -> Any:
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "<bos>": 3, "<eos>": 4, "▁": 5, "a": 6, "▁a": 7}
    return kind(vocab=vocabulary, merges=[("▁", "a")], add_bos_token=True)


CONVENTIONS: dict[str, tuple[Callable[[], Any], SpecialTokens]] = {
    "none": (word_tokenizer, SpecialTokens()),
    "bos": (lambda: word_tokenizer(template("<s> $A")), SpecialTokens((BOS,))),
    "both": (lambda: word_tokenizer(template("<s> $A </s>")), SpecialTokens((BOS,), (EOS,))),
    "eos": (lambda: word_tokenizer(template("$A </s>")), SpecialTokens((), (EOS,))),
    "two": (lambda: word_tokenizer(template("[gMASK] <s> $A")), SpecialTokens((MASK, BOS))),
    "one token for both": (
        lambda: word_tokenizer(template("<s> $A <s>"), eos_token="<s>"),
        SpecialTokens((BOS,), (BOS,)),
    ),
    "bert": (
        lambda: word_tokenizer(processors.BertProcessing(("</s>", EOS), ("<s>", BOS))),
        SpecialTokens((BOS,), (EOS,)),
    ),
    "roberta": (
        lambda: word_tokenizer(processors.RobertaProcessing(("</s>", EOS), ("<s>", BOS))),
        SpecialTokens((BOS,), (EOS,)),
    ),
    "sequence": (
        lambda: word_tokenizer(
            processors.Sequence([processors.ByteLevel(trim_offsets=True), template("<s> $A")])
        ),
        SpecialTokens((BOS,)),
    ),
    "flag": (lambda: word_tokenizer(add_bos_token=True), SpecialTokens((BOS,))),
    "llama": (lambda: of_class(LlamaTokenizer), SpecialTokens((1,))),
    "gemma": (lambda: of_class(GemmaTokenizer), SpecialTokens((3,))),
}


@pytest.fixture(params=CONVENTIONS.values(), ids=CONVENTIONS.keys())
def given(request: pytest.FixtureRequest) -> tuple[Any, SpecialTokens]:
    make, expected = request.param
    return make(), expected


def reloaded(tokenizer: Any, folder: Path) -> Any:
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_the_convention_is_found(given: tuple[Any, SpecialTokens], tmp_path: Path) -> None:
    tokenizer, expected = given
    assert special_tokens_of(tokenizer) == expected
    assert special_tokens_of(reloaded(tokenizer, tmp_path)) == expected


@pytest.mark.parametrize("choice", ["tokenizer", "always", "never"])
def test_a_choice_is_saved_with_the_tokenizer(
    given: tuple[Any, SpecialTokens], choice: Any, tmp_path: Path
) -> None:
    tokenizer, before = given
    text = "amber bear" if "amber" in tokenizer.get_vocab() else "a a"
    bare = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    choose_bos(tokenizer, choice)
    bos_ids = {
        "tokenizer": before.bos_ids,
        "always": before.bos_ids or (tokenizer.bos_token_id,),
        "never": (),
    }[choice]
    for one in (tokenizer, reloaded(tokenizer, tmp_path)):
        assert special_tokens_of(one) == SpecialTokens(bos_ids, before.eos_ids)
        assert tuple(one(text)["input_ids"]) == bos_ids + bare + before.eos_ids
        pair = one(text, text)["input_ids"]
        assert len(pair) >= 2 * len(bare)
        choose_bos(one, choice)  # a second time, as from a checkpoint
        assert tuple(one(text)["input_ids"]) == bos_ids + bare + before.eos_ids


def test_offsets_stay_trimmed_beside_a_choice() -> None:
    tokenizer = CONVENTIONS["sequence"][0]()
    choose_bos(tokenizer, "never")
    assert tokenizer.backend_tokenizer.post_processor.__class__.__name__ == "Sequence"


def test_ids_begin_with_exactly_one_bos() -> None:
    for special in (SpecialTokens((BOS,)), SpecialTokens((MASK, BOS))):
        plain = (4, 5)
        for given_ids in (plain, special.bos_ids + plain, special.bos_ids * 2 + plain):
            assert special.with_bos(given_ids) == special.bos_ids + plain
            assert special.without_bos(given_ids) == plain
    assert SpecialTokens().with_bos((BOS, 4)) == (BOS, 4)


def test_a_prompt_is_not_ended(given: tuple[Any, SpecialTokens]) -> None:
    tokenizer, before = given
    drop_eos(tokenizer)
    assert special_tokens_of(tokenizer) == SpecialTokens(before.bos_ids)


def test_the_end_of_documents() -> None:
    plain, both = CONVENTIONS["none"][0](), CONVENTIONS["both"][0]()
    ends = [document_end(t, c) for t in (plain, both) for c in ("tokenizer", "always", "never")]
    assert ends == [(), (EOS,), (), (EOS,), (EOS,), ()]


def test_a_vocabulary_without_letters_is_probed_with_its_own_tokens() -> None:
    core = Tokenizer(models.BPE({"<s>": 0, "я": 1}, []))
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    tokenizer = FastTokenizer(tokenizer_object=core, bos_token="<s>")
    assert special_tokens_of(tokenizer) == SpecialTokens((0,))


def test_what_cannot_be_chosen_is_refused(tmp_path: Path) -> None:
    core = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    bare = FastTokenizer(tokenizer_object=core)
    with pytest.raises(InvalidInput, match=r"model\.bos=always: .* has no BOS token"):
        choose_bos(bare, "always")
    with pytest.raises(InvalidInput, match=r"corpus\.eos=always: .* has no end-of-text token"):
        document_end(bare, "always")
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n[PAD]\n[MASK]\na\n")
    slow = BertTokenizerLegacy(str(tmp_path / "vocab.txt"))
    assert special_tokens_of(slow) == SpecialTokens((1,), (2,))
    with pytest.raises(InvalidInput, match=r"is a slow tokenizer, .* expected a fast one"):
        choose_bos(slow, "never")


@pytest.mark.parametrize("choice", ["tokenizer", "always"])
def test_a_tokenizer_as_wished_is_not_touched(choice: Any) -> None:
    tokenizer = CONVENTIONS["bos"][0]()
    before = tokenizer.backend_tokenizer.to_str()
    choose_bos(tokenizer, choice)
    assert tokenizer.backend_tokenizer.to_str() == before


def test_a_template_renders_no_bos_with_never(tmp_path: Path) -> None:
    tokenizer = CONVENTIONS["bos"][0]()
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}"
    choose_bos(tokenizer, "never")
    choose_bos(tokenizer, "never")
    again = reloaded(tokenizer, tmp_path)
    for one in (tokenizer, again):
        messages = [{"role": "user", "content": "amber"}]
        assert one.apply_chat_template(messages, tokenize=False) == "amber"
