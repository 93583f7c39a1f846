"""Model directories: what loads, what is refused and why; weights are applied all or nothing."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from forethought import objectives
from forethought.compute.answers import Query, evaluate
from forethought.compute.model import (
    LanguageModel,
    Markers,
    add_markers,
    find_markers,
    load_language_model,
    load_tokenizer,
    model_length,
    read_model_files,
    resolve_device,
)
from forethought.compute.policy import check_length
from forethought.compute.sampling import derive_seed
from forethought.compute.weights import apply_weights, named_weights, serialise
from forethought.config import load_settings
from forethought.errors import InvalidInput
from forethought.special_tokens import choose_bos
from forethought.types import Document, Position, Prompting, Sampling
from tests import tiny

Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One llama (embeddings untied) and one gpt2 (tied)."""
    root = tmp_path_factory.mktemp("models")
    return {kind: tiny.build_model_directory(root / kind, kind) for kind in ("llama", "gpt2")}


@pytest.fixture(params=["llama", "gpt2"])
def directory(request: pytest.FixtureRequest, directories: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(directories[request.param], tmp_path / "model"))


@pytest.fixture
def language_model(directory: Path) -> LanguageModel:
    return load_language_model(directory, "float32", "cpu")


def edit_json(name: str, **values: Any) -> Damage:
    def damage(directory: Path) -> None:
        file = directory / name
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return damage


def write(name: str, content: bytes) -> Damage:
    return lambda directory: (directory / name).write_bytes(content) and None


def remove(*names: str) -> Damage:
    return lambda directory: [(directory / name).unlink() for name in names] and None


def cut_weights(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def damage(directory: Path) -> None:
        file = directory / "model.safetensors"
        tensors = {name: tensor.clone() for name, tensor in load_file(str(file)).items()}
        change(tensors)
        save_file(tensors, str(file), metadata={"format": "pt"})

    return damage


def a_matrix(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name in sorted(tensors) if "mlp" in name and tensors[name].ndim == 2)


def test_a_model_loads_ready_to_serve(language_model: LanguageModel) -> None:
    assert not language_model.model.training
    assert language_model.max_length_tokens == tiny.MAX_LENGTH_TOKENS
    assert language_model.device == torch.device("cpu")
    assert {p.dtype for p in language_model.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("asked", "got"), [(0, 96), (40, 40), (1000, 96)])
def test_the_length_is_the_shorter_of_the_setting_and_the_models(
    directories: dict[str, Path], asked: int, got: int
) -> None:
    loaded = load_language_model(directories["gpt2"], "bfloat16", "cpu", asked)
    assert loaded.max_length_tokens == got
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}


def test_a_model_without_a_limit_takes_a_million_tokens() -> None:
    assert model_length(object()) == 1 << 20


@pytest.mark.parametrize("name", ["absent", "a-file", "org/name-on-a-hub", ""])
def test_a_path_that_is_not_a_directory_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a-file").write_text("")
    path = tmp_path / name if name in ("absent", "a-file") else name or tmp_path / "x" / ".."
    with pytest.raises(InvalidInput, match=r"model directory .* does not exist; expected a local"):
        load_language_model(path, "float32", "cpu")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove("tokenizer.json", "tokenizer_config.json"), "no tokenizer in"),
        (write("tokenizer.json", b"garbage"), "no tokenizer in"),
        (write("config.json", b"{"), "expected the files|AutoModelForCausalLM loads"),
        (remove("config.json"), "no causal language model in"),
        (edit_json("config.json", model_type="no-such"), "no causal language model in"),
        (edit_json("config.json", model_type="t5"), "no causal language model in"),
        (remove("model.safetensors"), "no causal language model in"),
        (write("model.safetensors", b"garbage" * 20), "no causal language model in"),
        (cut_weights, "no causal language model in"),
        (edit_tensors(lambda t: t.update({a_matrix(t): torch.ones(2, 2)})), "no causal language mod"),
        (edit_tensors(lambda t: t.pop(a_matrix(t))), r"lack 1 tensors of the model, such as .*mlp"),
    ],
    ids=[
        "no-tokenizer", "bad-tokenizer", "bad-config", "no-config", "unknown-type", "not-causal",
        "no-weights", "garbage-weights", "cut-weights", "other-shape", "lacks-a-tensor",
    ],
)  # fmt: skip
def test_damaged_directories_are_refused_with_a_clear_message(
    directory: Path, damage: Damage, words: str
) -> None:
    damage(directory)
    with pytest.raises(InvalidInput, match=words) as refused:
        load_language_model(directory, "float32", "cpu")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_code_in_a_model_directory_is_neither_run_nor_asked_about(
    directories: dict[str, Path], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Path(shutil.copytree(directories[kind], tmp_path / "model"))
    auto_map = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}
    edit_json("config.json", model_type="theirs", auto_map=auto_map)(directory)
    edit_json("tokenizer_config.json", auto_map={"AutoTokenizer": [None, "theirs.Tokenizer"]})(
        directory
    )
    (directory / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.setattr(
        "builtins.input", lambda *_: pytest.fail("asked whether to run foreign code")
    )
    with pytest.raises(InvalidInput):
        load_language_model(directory, "float32", "cpu")
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(directory: Path) -> None:
    tokenizer = load_tokenizer(directory)
    tokenizer.add_tokens(["<one more>"])
    tokenizer.save_pretrained(directory)
    with pytest.raises(InvalidInput, match=r"has token id 259, the model only 259 embeddings"):
        load_language_model(directory, "float32", "cpu")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no-such", "unknown to torch"),
        ("cuda:99", r"torch sees \d+ GPUs"),
        ("", "unknown to torch"),
    ],
)
def test_missing_devices_are_refused(name: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        resolve_device(name)


def test_markers_are_found(directories: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(directories["llama"])
    assert find_markers(tokenizer, "<think>", "</think>") == Markers(
        (tiny.OPEN_ID,), (tiny.CLOSE_ID,)
    )
    assert find_markers(tokenizer, "a", "b") == Markers(
        *((i,) for i in tokenizer("ab")["input_ids"])
    )


@pytest.mark.parametrize(
    ("think_open", "think_close", "words"),
    [
        ("", "</think>", r"'' is 0 tokens .*model\.add_think_tokens=true"),
        ("<think>", "<think>", "both think markers are token 257; expected two different"),
        ("ö", "ö", r"both think markers are ordinary text of 2 tokens \[127, 114\]; expected two"),
    ],
)
def test_unusable_markers_are_refused(
    directories: dict[str, Path], think_open: str, think_close: str, words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        find_markers(load_tokenizer(directories["llama"]), think_open, think_close)


def test_other_markers_are_ordinary_text_of_several_tokens(directories: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(directories["llama"])
    tokenizer.bos_token = tiny.EOS
    choose_bos(tokenizer, "always")
    markers = find_markers(tokenizer, "<think>", "\n\nö")
    assert markers.open_ids == (tiny.OPEN_ID,)
    assert tokenizer.decode(markers.close_ids) == "\n\nö"
    assert str(markers) == f"token 257 and ordinary text of 4 tokens {list(markers.close_ids)}"
    assert (markers.stop_ids, markers.stop_sequences) == ((), (markers.close_ids,))
    assert markers.occur_in((5, tiny.OPEN_ID))
    assert markers.occur_in((5, *markers.close_ids, 6))
    assert not markers.occur_in((5, *markers.close_ids[:-1], 6))


def test_unknown_tokens_are_no_marker() -> None:
    core = Tokenizer(models.WordLevel({"<unk>": 0, "so": 1, "then": 2}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    assert find_markers(tokenizer, "so then", "then") == Markers((1, 2), (2,))
    with pytest.raises(InvalidInput, match=r"'so well' is 2 tokens \[1, 0\]"):
        find_markers(tokenizer, "so well", "then")


def test_added_markers_are_single_tokens_and_survive_saving(
    language_model: LanguageModel, tmp_path: Path
) -> None:
    old = language_model.model.get_input_embeddings().weight.detach().clone()
    add_markers(language_model, "<thought>", "</thought>")
    markers = find_markers(language_model.tokenizer, "<thought>", "</thought>")
    assert markers == Markers((tiny.VOCAB_SIZE,), (tiny.VOCAB_SIZE + 1,))
    grown = language_model.model.get_input_embeddings().weight
    assert grown.shape[0] == tiny.VOCAB_SIZE + 2
    assert torch.equal(grown[: tiny.VOCAB_SIZE], old)
    language_model.model.save_pretrained(tmp_path / "saved")
    language_model.tokenizer.save_pretrained(tmp_path / "saved")
    back = load_language_model(tmp_path / "saved", "float32", "cpu")
    assert find_markers(back.tokenizer, "<thought>", "</thought>") == markers
    assert find_markers(back.tokenizer, "<think>", "</think>").open_ids == (tiny.OPEN_ID,)
    ids = torch.tensor([[5, *markers.open_ids, 9, *markers.close_ids]])
    assert torch.equal(back.model(ids).logits, language_model.model(ids).logits)


def test_existing_markers_change_nothing(language_model: LanguageModel) -> None:
    before = language_model.model.get_input_embeddings().weight
    add_markers(language_model, "<think>", "</think>")
    assert language_model.model.get_input_embeddings().weight is before
    assert len(language_model.tokenizer) == tiny.VOCAB_SIZE


def test_model_files_are_all_but_weights_and_code(directory: Path) -> None:
    for name in ("model.safetensors.index.json", "code.py", "old.bin"):
        (directory / name).write_text("x")
    names = read_model_files(directory).keys()
    assert names == {
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_round_trip(
    directories: dict[str, Path], tmp_path: Path, kind: str, dtype: str
) -> None:
    source = load_language_model(directories[kind], dtype, "cpu").model
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.125)
    file = tmp_path / "model.safetensors"
    file.write_bytes(serialise(named_weights(source)))
    target = load_language_model(directories[kind], dtype, "cpu").model
    ids = torch.tensor([[5, 9, 30]])
    assert not torch.equal(target(ids).logits, source(ids).logits)
    apply_weights(target, file)
    assert torch.equal(target(ids).logits, source(ids).logits)


def test_the_payload_is_a_model_file_that_transformers_loads(
    language_model: LanguageModel, directory: Path
) -> None:
    with torch.no_grad():
        for parameter in language_model.model.parameters():
            parameter.mul_(1.5)
    payload = serialise(named_weights(language_model.model))
    (directory / "model.safetensors").write_bytes(payload)
    ids = torch.tensor([[5, 9, 30]])
    loaded = AutoModelForCausalLM.from_pretrained(str(directory)).eval()
    assert torch.equal(loaded(ids).logits, language_model.model(ids).logits)


def test_tied_weights_are_included_once(directories: dict[str, Path]) -> None:
    model = load_language_model(directories["gpt2"], "float32", "cpu").model
    names = named_weights(model).keys()
    assert "transformer.wte.weight" in names
    assert "lm_head.weight" not in names
    untied = load_language_model(directories["llama"], "float32", "cpu").model
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= named_weights(untied).keys()
    assert not any("inv_freq" in name for name in named_weights(untied))  # not persistent


def test_overlapping_loads_do_not_break_weight_tying(directories: dict[str, Path]) -> None:
    tie_weights = PreTrainedModel.tie_weights
    with ThreadPoolExecutor(4) as threads:
        loads = [
            threads.submit(load_language_model, directories["gpt2"], "float32", "cpu")
            for _ in range(12)
        ]
        held = [named_weights(load.result().model).keys() for load in loads]
    assert PreTrainedModel.tie_weights is tie_weights
    assert not any("lm_head.weight" in names for names in held)


def rename(tensors: dict[str, torch.Tensor]) -> None:
    tensors["foreign"] = tensors.pop(a_matrix(tensors))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(a_matrix(t)), "mlp.* is missing"),
        (lambda t: t.update(foreign=torch.ones(1)), "foreign is unknown"),
        (rename, "is missing; foreign is unknown"),
        (
            lambda t: t.update({a_matrix(t): torch.ones(2, 3)}),
            r"is float32\[2, 3\], expected float32",
        ),
        (
            lambda t: t.update({a_matrix(t): t[a_matrix(t)].bfloat16()}),
            "is bfloat16.* expected float32",
        ),
    ],
    ids=["missing", "unknown", "renamed", "shape", "dtype"],
)
def test_weights_of_another_model_are_refused_as_a_whole(
    language_model: LanguageModel, tmp_path: Path, change: Callable[[Any], Any], words: str
) -> None:
    model = language_model.model
    before = {name: tensor.clone() for name, tensor in named_weights(model).items()}
    pushed = {name: tensor + 1 for name, tensor in before.items()}
    change(pushed)
    file = tmp_path / "model.safetensors"
    file.write_bytes(serialise(pushed))
    with pytest.raises(InvalidInput, match=words):
        apply_weights(model, file)
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_weights(model).items())


PROMPTING = Prompting((3,), (10, tiny.OPEN_ID), (tiny.CLOSE_ID, 11), (4,))
SAMPLING = Sampling(3, 5, 0.8, (tiny.CLOSE_ID, 65))


def naive_logprobs(model: Any, ids: list[int], banned: int | None = None) -> torch.Tensor:
    logits = model(torch.tensor([ids])).logits[0, -1].float()
    if banned is not None:
        logits[banned] = -math.inf
    return torch.log_softmax(logits, dim=-1)


def naive_thought(model: Any, prefix: list[int], seed: int) -> list[int]:
    """One whole forward pass per token, drawn by the inverse of the cumulative distribution."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(SAMPLING.max_thought_tokens, generator=generator, dtype=torch.float64)
    ids: list[int] = []
    for number in drawn:
        logits = model(torch.tensor([prefix + ids])).logits[0, -1].double()
        cumulative = torch.softmax(logits / SAMPLING.temperature, dim=-1).cumsum(0)
        ids.append(int((cumulative <= number).sum()))
        if ids[-1] in SAMPLING.stop_ids:
            break
    return ids


def naive_target(
    model: Any, prefix: list[int], target: tuple[int, ...], banned: int | None = None
) -> tuple[float, bool]:
    """log p(target | prefix), and whether each of its tokens was the likeliest."""
    total, hit = 0.0, True
    for h, token in enumerate(target):
        logprobs = naive_logprobs(model, prefix + list(target[:h]), banned)
        total += float(logprobs[token])
        hit = hit and int(logprobs.argmax()) == token
    return total, hit


def make_queries(model: Any) -> list[Query]:
    """Contexts of several lengths; half the targets are the model's own greedy continuations."""
    queries = []
    for n in range(6):
        trunk = tuple(20 + (7 * n + 3 * i) % 90 for i in range(4 + 2 * n))
        index = 1 + 2 * n
        target: tuple[int, ...] = trunk[index : index + 2]
        if n % 2:
            prefix = [*PROMPTING.no_think_head_ids, *trunk[:index]]
            target = (int(naive_logprobs(model, prefix, tiny.OPEN_ID).argmax()),)
        trunk = trunk[:index] + target + trunk[index + len(target) :]
        queries.append(Query(Document(f"d{n}", "s", trunk), Position(index, target)))
    return queries


@torch.no_grad()
def test_evaluation_equals_a_naive_computation(language_model: LanguageModel) -> None:
    model = language_model.model
    queries = make_queries(model)
    got = evaluate(language_model, queries, PROMPTING, SAMPLING, seed=9)
    plain, thinking, thoughts = [], [], []
    for q, query in enumerate(queries):
        context = list(query.document.token_ids_N[: query.position.index])
        target = query.position.target_ids_H
        plain.append(naive_target(model, [4, *context], target, banned=tiny.OPEN_ID))
        prefix = [3, *context, 10, tiny.OPEN_ID]
        for g in range(SAMPLING.group_size):
            thoughts.append(naive_thought(model, prefix, derive_seed(9, q, g)))
            close = [11] if thoughts[-1][-1] in SAMPLING.stop_ids else [tiny.CLOSE_ID, 11]
            thinking.append(naive_target(model, prefix + thoughts[-1] + close, target))
    num_thoughts = SAMPLING.group_size
    think_nll, no_think_nll = (-fmean(total for total, _ in each) for each in (thinking, plain))
    assert got.to_dict() == pytest.approx(
        {
            "think_accuracy": fmean(hit for _, hit in thinking),
            "no_think_accuracy": fmean(hit for _, hit in plain),
            "think_nll": think_nll,
            "marginal_nll": -fmean(
                math.log(
                    fmean(math.exp(total) for total, _ in thinking[start : start + num_thoughts])
                )
                for start in range(0, len(thinking), num_thoughts)
            ),
            "no_think_nll": no_think_nll,
            "information_gain": no_think_nll - think_nll,
            "thought_tokens_mean": fmean(map(len, thoughts)),
            "truncated_share": fmean(t[-1] not in SAMPLING.stop_ids for t in thoughts),
        },
        abs=1e-5,
    )
    assert got.no_think_accuracy >= 0.5  # the targets that were made so


@pytest.mark.parametrize(
    ("window", "budget", "fits"), [(64, 30, True), (65, 30, False), (64, 31, False)]
)
def test_windows_with_their_thoughts_have_to_fit(
    directories: dict[str, Path], window: int, budget: int, fits: bool
) -> None:
    """64 tokens of window, 2 of markers and 30 of thought are the model's limit of 96."""
    words = (f"corpus.window_tokens={window}", f"sampling.max_thought_tokens={budget}")
    settings = load_settings(None, words, {})
    language_model = load_language_model(directories["llama"], "float32", "cpu")
    rlp = objectives.load("rlp")
    prompting = rlp.prompting((tiny.OPEN_ID,), (tiny.CLOSE_ID,))
    if fits:
        check_length(settings, rlp, language_model, prompting)
        return
    with pytest.raises(
        InvalidInput, match=r"need 97, the model takes 96; lower corpus\.window_tokens"
    ):
        check_length(settings, rlp, language_model, prompting)


@pytest.mark.parametrize(("window", "fits"), [(96, True), (97, False)])
def test_plain_windows_have_to_fit(directories: dict[str, Path], window: int, fits: bool) -> None:
    settings = load_settings(None, (f"corpus.window_tokens={window}",), {})
    language_model = load_language_model(directories["llama"], "float32", "cpu")
    ntp = objectives.load("ntp")
    if fits:
        check_length(settings, ntp, language_model, None)
        return
    with pytest.raises(InvalidInput, match="need 97"):
        check_length(settings, ntp, language_model, None)
    shorter = replace(language_model, max_length_tokens=50)
    with pytest.raises(InvalidInput, match="the model takes 50"):
        check_length(settings, ntp, shorter, None)
