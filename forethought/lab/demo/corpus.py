"""Synthetic corpus of the demo: state tracking modulo 7, one word per token.

Thinking helps only where the next token needs more sequential steps than the network has layers.
A document reads

    <s> amber bear 3 +4 rest *5 +2 rest *3 = 6 .

that is: a word of irreducible noise, its fixed companion (trivially predictable), a start
state, six operations, ``=``, the resulting state (the *answer*) and a full stop. Only the
answer needs several sequential steps, more than a two-layer model can do in one pass;
``rest`` leaves the state unchanged and pads every document to the same thirteen words. A worked
document contains the six intermediate states as a thought before the answer:

    <s> amber bear 3 +4 rest *5 +2 rest *3 = <think> 0 0 0 2 2 6 </think> 6 .
"""

import json
import random
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MODULUS = 7
NUM_OPERATIONS = 6
ANSWER_PLACE = 5 + NUM_OPERATIONS
"""Index of the answer among the thirteen words of a plain document."""
BOS, EOS, PAD, UNK = "<s>", "</s>", "<pad>", "<unk>"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
EQUALS, SEPARATOR, REST = "=", ".", "rest"
RESIDUES = tuple(str(state) for state in range(MODULUS))
ACTIVE_OPERATIONS = (
    *(f"+{addend}" for addend in range(1, MODULUS)),
    *(f"*{factor}" for factor in range(2, MODULUS)),
)
NOISE_WORDS = ("amber", "blue", "coral", "dusty", "ebony", "faded", "green", "hazel")
COMPANIONS = ("bear", "crow", "deer", "frog", "goat", "hare", "lynx", "wolf")
SPECIAL_WORDS = (PAD, UNK, BOS, EOS, THINK_OPEN, THINK_CLOSE)
VOCABULARY = (
    *SPECIAL_WORDS,
    *(EQUALS, SEPARATOR, REST),
    *(*RESIDUES, *ACTIVE_OPERATIONS),
    *(*NOISE_WORDS, *COMPANIONS),
)
HELDOUT_MODULUS = 16
"""One in this many problems belongs to the held-out split, for any seed."""


@dataclass(frozen=True)
class DemoDocument:
    """One document as text, with the positions where thinking helps.

    ``marks`` are the character offsets of the first character of each answer word.
    Example: ``DemoDocument("<s> amber bear 3 +4 rest *5 +2 rest *3 = 6 .", marks=(41,))``.
    """

    text: str
    marks: tuple[int, ...]


@dataclass(frozen=True)
class Mixture:
    """Shares of the base model's pre-training documents, each in [0, 1].

    Of the worked documents, ``idle_share`` contain an empty or idle thought before a random
    word instead of a trace before the answer, so that the base has seen thoughts everywhere.
    Of the traces, ``right_share`` are correct, ``random_share`` contain random states and the
    others are correct but truncated. Example: ``Mixture(worked_share=0.0)`` is plain text.
    """

    worked_share: float = 0.4
    idle_share: float = 0.4
    right_share: float = 0.5
    random_share: float = 0.25

    def __post_init__(self) -> None:
        """Reject shares that are not probabilities."""
        shares = (self.worked_share, self.idle_share, self.right_share, self.random_share)
        traces = self.right_share + self.random_share
        if not all(0.0 <= share <= 1.0 for share in (*shares, traces)):
            raise ValueError(f"every share, and right + random, must lie in [0, 1]; got {self}")


PLAIN = Mixture(worked_share=0.0)
"""No worked documents: the corpus of RLP and continued pre-training."""


@dataclass(frozen=True)
class CorpusFiles:
    """The two JSONL files of `write_corpus`, e.g. ``runs/demo/corpus/train.jsonl``."""

    train: Path
    heldout: Path


@dataclass(frozen=True)
class Problem:
    """One state-tracking problem, before it is rendered as a document.

    Example: ``Problem(noise_index=0, start=3, operations=("+4", "rest", "*5", …))``, six of them.
    """

    noise_index: int
    start: int
    operations: tuple[str, ...]

    @property
    def states(self) -> tuple[int, ...]:
        """The state modulo 7 after each of the six operations; the last is the answer."""
        states = [self.start]
        for operation in self.operations:
            states.append(apply_operation(states[-1], operation))
        return tuple(states[1:])

    @property
    def words(self) -> tuple[str, ...]:
        """The thirteen words of the plain document; the answer is the last but one."""
        opening = (BOS, NOISE_WORDS[self.noise_index], COMPANIONS[self.noise_index])
        answer = RESIDUES[self.states[-1]]
        return (*opening, RESIDUES[self.start], *self.operations, EQUALS, answer, SEPARATOR)

    @property
    def is_heldout(self) -> bool:
        """Whether the problem belongs to the held-out split; depends on its words, not on a seed."""
        return zlib.crc32(" ".join(self.words).encode()) % HELDOUT_MODULUS == 0


def apply_operation(state: int, operation: str) -> int:
    """The state modulo 7 after ``operation``: ``apply_operation(3, "*5")`` is 1."""
    if operation == REST:
        return state
    operand = int(operation[1:])
    return (state + operand if operation[0] == "+" else state * operand) % MODULUS


def draw_problem(rng: random.Random, *, heldout: bool = False) -> Problem:
    """A problem of uniform difficulty k (0-6 active operations, at random positions) in one split."""
    difficulty = rng.randint(0, NUM_OPERATIONS)
    while True:
        operations = [REST] * NUM_OPERATIONS
        for slot in rng.sample(range(NUM_OPERATIONS), difficulty):
            operations[slot] = rng.choice(ACTIVE_OPERATIONS)
        noise_index, start = rng.randrange(len(NOISE_WORDS)), rng.randrange(MODULUS)
        problem = Problem(noise_index, start, tuple(operations))
        if problem.is_heldout == heldout:
            return problem


def render(
    problem: Problem, thought: Iterable[str] | None = None, before: int = ANSWER_PLACE
) -> DemoDocument:
    """Render a problem as text, with ``thought`` (if any) before word number ``before`` (0-12)."""
    words, inserted = problem.words, () if thought is None else (THINK_OPEN, *thought, THINK_CLOSE)
    text_words = (*words[:before], *inserted, *words[before:])
    answer_place = ANSWER_PLACE + (len(inserted) if before <= ANSWER_PLACE else 0)
    offset = sum(len(word) + 1 for word in text_words[:answer_place])
    return DemoDocument(" ".join(text_words), marks=(offset,))


def plain_document(rng: random.Random, *, heldout: bool = False) -> DemoDocument:
    """A document without a thought, of the train split unless ``heldout``."""
    return render(draw_problem(rng, heldout=heldout))


def mixture_document(rng: random.Random, mixture: Mixture) -> DemoDocument:
    """A document of the train split: plain, worked or with an idle thought, drawn by ``mixture``."""
    problem = draw_problem(rng)
    if rng.random() >= mixture.worked_share:
        return render(problem)
    if rng.random() < mixture.idle_share:
        return render(problem, _idle_thought(rng), before=rng.randint(1, ANSWER_PLACE + 1))
    return render(problem, _trace(problem, rng, mixture))


def _idle_thought(rng: random.Random) -> list[str]:
    """A thought without content: zero to six times ``rest``, empty half of the time."""
    return [REST] * (rng.randint(1, NUM_OPERATIONS) if rng.random() < 0.5 else 0)


def _trace(problem: Problem, rng: random.Random, mixture: Mixture) -> list[str]:
    """The intermediate states: correct, random, or correct but truncated after zero to five of them."""
    right = [RESIDUES[state] for state in problem.states]
    kind = rng.random()
    if kind < mixture.right_share:
        return right
    if kind < mixture.right_share + mixture.random_share:
        return [rng.choice(RESIDUES) for _ in right]
    return right[: rng.randrange(NUM_OPERATIONS)]


def documents(
    num_documents: int, *, seed: int, mixture: Mixture = PLAIN, heldout: bool = False
) -> Iterator[DemoDocument]:
    """A reproducible stream of documents; held-out ones are always plain.

    The two splits share no problem, in any form and under any seed: a problem's split is
    determined by its words. Easy problems (k = 0: 56 in all) repeat within a split.
    """
    rng = random.Random(f"demo/{'heldout' if heldout else 'train'}/{seed}")
    for _ in range(num_documents):
        yield plain_document(rng, heldout=True) if heldout else mixture_document(rng, mixture)


def write_corpus(
    directory: Path, *, num_documents: int, seed: int, mixture: Mixture, num_heldout: int = 512
) -> CorpusFiles:
    """Write ``train.jsonl`` and ``heldout.jsonl``, a line ``{"text": …, "marks": […]}`` each.

    ``marks`` are character offsets of answer words. Held-out documents are plain and none of
    their problems occurs in any train split, so corpora for the base model and for RLP agree.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files = CorpusFiles(train=directory / "train.jsonl", heldout=directory / "heldout.jsonl")
    _write_jsonl(files.train, documents(num_documents, seed=seed, mixture=mixture))
    _write_jsonl(files.heldout, documents(num_heldout, seed=seed, heldout=True))
    return files


def _write_jsonl(path: Path, stream: Iterable[DemoDocument]) -> None:
    """Write one JSON object per line."""
    with path.open("w", encoding="utf-8") as file:
        for document in stream:
            file.write(json.dumps({"text": document.text, "marks": document.marks}) + "\n")


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """A word-level tokenizer over `VOCABULARY`: one id per whitespace-separated word.

    It adds no special tokens (the text contains ``<s>``), and ``decode`` returns the words joined
    by single spaces. ``</s>`` occurs in no document.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    ids = {word: index for index, word in enumerate(VOCABULARY)}
    core = Tokenizer(WordLevel(ids, unk_token=UNK))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        additional_special_tokens=[THINK_OPEN, THINK_CLOSE],
        clean_up_tokenization_spaces=False,
    )
