"""Settings: the precedence of their four sources, and everything that is rejected with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from forethought import objectives, wire
from forethought.auth.guard import run_tokens
from forethought.config import Settings, load_settings, write_resolved
from forethought.errors import InvalidInput
from forethought.preflight import check_corpus, check_redis, check_run, largest_value_bytes
from forethought.queue.interface import MAX_VALUE_BYTES
from forethought.types import (
    Document,
    Position,
    Prompting,
    Rollout,
    Sampling,
    ScoredRollout,
    Task,
    Thought,
    VersionSpan,
)
from tests.repository import ROOT

SHIPPED = sorted(
    file for file in (ROOT / "configs").glob("*.toml") if not file.name.startswith("compare-")
)


def load(
    tmp_path: Path, toml: str = "", overrides: tuple[str, ...] = (), **environment: str
) -> Settings:
    file = tmp_path / "run.toml"
    file.write_text(toml, encoding="utf-8")
    return load_settings(file, overrides, environment)


def refusal(tmp_path: Path, toml: str = "", overrides: tuple[str, ...] = (), **env: str) -> str:
    with pytest.raises(InvalidInput) as refused:
        load(tmp_path, toml, overrides, **env)
    return str(refused.value)


def test_precedence(tmp_path: Path) -> None:
    """Defaults < file < environment < command line, key by key."""
    settings = load(
        tmp_path,
        "[learner]\nsteps = 11\nbatch_tasks = 12\nwarmup_steps = 13\n",
        ("learner.steps=31",),
        FORETHOUGHT_LEARNER_STEPS="21",
        FORETHOUGHT_LEARNER_BATCH_TASKS="22",
        ANOTHER_LEARNER_WARMUP_STEPS="99",
    )
    learner = settings.learner
    assert (learner.steps, learner.batch_tasks, learner.warmup_steps) == (31, 22, 13)
    assert learner.max_staleness == Settings().learner.max_staleness


def test_the_last_override_wins(tmp_path: Path) -> None:
    assert load(tmp_path, "", ("run.seed=1", "run.seed=2")).run.seed == 2


def test_without_any_source_everything_is_default() -> None:
    assert load_settings(None, (), {}) == Settings()


def test_the_process_environment_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORETHOUGHT_RUN_SEED", "77")
    assert load_settings().run.seed == 77


def test_values_are_toml_or_plain_strings(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        "",
        (
            "redis.url=redis://127.0.0.1:6379/0",
            "learner.learning_rate=3e-4",
            "learner.tensorboard=true",
            'run.name="7"',
            "corpus.path=/data/Füße und Hände",
            "objective.parameters.num_positions=3",
            "rollout.host=",
        ),
        FORETHOUGHT_OBJECTIVE_PARAMETERS='{positions = "marked"}',
    )
    assert settings.redis.url == "redis://127.0.0.1:6379/0"
    assert settings.learner.learning_rate == 3e-4
    assert settings.learner.tensorboard is True
    assert settings.run.name == "7"
    assert settings.corpus.path == "/data/Füße und Hände"
    assert settings.objective.parameters == {"positions": "marked", "num_positions": 3}
    assert settings.rollout.host == ""


@pytest.mark.parametrize("text", ["2024-01-01", "12:30:00", "1e3", "0x10", "1_000", "true", "[a]"])
def test_a_string_setting_is_taken_as_written(tmp_path: Path, text: str) -> None:
    """Also where TOML has another type for it."""
    settings = load(tmp_path, "", (f"corpus.path={text}",), FORETHOUGHT_MODEL_PATH=text)
    assert (settings.corpus.path, settings.model.path) == (text, text)


def test_a_date_without_quotes_is_a_string_in_a_free_table(tmp_path: Path) -> None:
    settings = load(tmp_path, "", ("objective.parameters.since=2024-01-01",))
    assert settings.objective.parameters == {"since": "2024-01-01"}


def test_a_fault_names_the_variable_or_the_command_line_that_it_comes_from(tmp_path: Path) -> None:
    """The file alone would send the reader looking in the wrong place; the last source is named."""
    told = refusal(
        tmp_path,
        "[learner]\nstepz = 3\nsteps = 'x'\nbatch_tasks = 'y'\n",
        ("learner.steps=none",),
        FORETHOUGHT_LEARNER_STAPS="1",
        FORETHOUGHT_LEARNER_STEPS="-1",
        FORETHOUGHT_LEANER_STEPS="1",
    )
    lines = {line.split(":")[0].strip(): line for line in told.splitlines()}
    assert lines["learner.staps"].endswith(
        "; given as FORETHOUGHT_LEARNER_STAPS in the environment"
    )
    assert lines["leaner"].endswith("; given as FORETHOUGHT_LEANER_STEPS in the environment")
    assert lines["learner.steps"].endswith("; given on the command line")
    assert not any("given" in lines[key] for key in ("learner.stepz", "learner.batch_tasks"))


def test_a_byte_order_mark_is_not_part_of_a_file(tmp_path: Path) -> None:
    """Windows editors begin files with one: configurations, password files and token files alike."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"\xef\xbb\xbfhunter-2\n")
    settings = load(
        tmp_path,
        f"\ufeff[redis]\nurl = 'redis://h:6379'\npassword_file = '{secret}'\n",
        (f"auth.token_file={secret}",),
    )
    assert settings.redis.url == "redis://:hunter-2@h:6379"
    assert run_tokens(settings.auth).accept("hunter-2")


def test_a_tilde_is_the_home_directory_in_every_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No shell expands it behind ``=`` or in a file."""
    monkeypatch.setenv("HOME", "/home/ada")
    settings = load(
        tmp_path,
        '[model]\npath = "~/base"\n[[corpus.sources]]\npath = "~/books"\n',
        ("run.directory=~/runs/one", "reward.policy_path=~", "objective.folder=~/own"),
        FORETHOUGHT_AUTH_TOKEN_FILE="~/token",
    )
    assert settings.run.directory == Path("/home/ada/runs/one")
    assert [settings.model.path, settings.corpus.sources[0].path] == [
        "/home/ada/base",
        "/home/ada/books",
    ]
    assert [settings.reward.policy_path, settings.objective.folder] == [
        "/home/ada",
        "/home/ada/own",
    ]
    assert settings.auth.token_file == "/home/ada/token"


def test_settings_are_typed_and_frozen(tmp_path: Path) -> None:
    settings = load(tmp_path, '[run]\ndirectory = "runs/a"\n')
    assert settings.run.directory == Path("runs/a")
    with pytest.raises(ValueError, match="frozen"):
        settings.run.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("toml", "overrides", "environment", "expected"),
    [
        ("[lerner]\nsteps = 1", (), {}, "lerner: unknown key; did you mean 'learner'?"),
        ("[learner]\nstep = 1", (), {}, "learner.step: unknown key; did you mean 'steps'?"),
        ("", ("lerner.steps=1",), {}, "lerner: unknown key; did you mean 'learner'?"),
        ("", ("learner.stepz=1",), {}, "learner.stepz: unknown key; did you mean 'steps'?"),
        ("", (), {"FORETHOUGHT_LERNER_STEPS": "1"}, "lerner: unknown key; did you mean 'learner'?"),
        ("", (), {"FORETHOUGHT_LEARNER_STEPZ": "1"}, "stepz: unknown key; did you mean 'steps'?"),
        ("", (), {"FORETHOUGHT_DEBUG": "1"}, "debug: unknown key"),
        (
            "[redis]\nqqqq = 1",
            (),
            {},
            "redis.qqqq: unknown key; known here: password_file, patience_s, url",
        ),
        ("[[corpus.sources]]\npaht = 'a'", (), {}, "paht: unknown key; did you mean 'path'?"),
    ],
)
def test_unknown_keys_are_refused_with_a_suggestion(
    tmp_path: Path,
    toml: str,
    overrides: tuple[str, ...],
    environment: dict[str, str],
    expected: str,
) -> None:
    assert expected in refusal(tmp_path, toml, overrides, **environment)


def test_every_fault_is_named_at_once(tmp_path: Path) -> None:
    words = refusal(
        tmp_path, "[learner]\nsteps = 0\nbeta1 = 1.5\n", ("run.name=a b", "publish.retry=1")
    )
    for fault in ("learner.steps", "learner.beta1", "run.name", "publish.retry", "run.toml"):
        assert fault in words


@pytest.mark.parametrize(
    ("word", "got"),
    [
        ("learner.steps=ten", "'ten'"),
        ("learner.steps=1.5", "1.5"),
        ("learner.learning_rate=nan", "nan"),
        ("learner.learning_rate=0", "0"),
        ("model.dtype=float16", "'float16'"),
        ("reward.http_port=65536", "65536"),
        ("rollout.engine=none", "'none'"),
        ("sampling.temperature=0", "0"),
        ("run.name=../up", "'../up'"),
        ("learner=3", ""),
    ],
)
def test_values_of_the_wrong_kind_are_refused_with_what_was_got(
    tmp_path: Path, word: str, got: str
) -> None:
    words = refusal(tmp_path, "", (word,))
    assert word.partition("=")[0] in words
    assert got in words


@pytest.mark.parametrize("word", ["learner.steps", "steps=3", ".steps=3", "learner.=3", "="])
def test_malformed_overrides_are_rejected(tmp_path: Path, word: str) -> None:
    assert "expected section.key=value" in refusal(tmp_path, "", (word,))


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"cannot read configuration .*absent\.toml"):
        load_settings(tmp_path / "absent.toml", (), {})
    with pytest.raises(InvalidInput, match="cannot read configuration"):
        load_settings(tmp_path, (), {})
    assert "not valid TOML" in refusal(tmp_path, "[learner\n")
    (tmp_path / "latin.toml").write_bytes(b'[run]\nname = "\xe4"\n')
    with pytest.raises(InvalidInput, match="not valid TOML"):
        load_settings(tmp_path / "latin.toml", (), {})


@pytest.mark.parametrize("word", ["sampling.top_p=0.9", "sampling.top_k=50"])
def test_truncated_distributions_are_refused_while_training(tmp_path: Path, word: str) -> None:
    words = refusal(tmp_path, "", (word,))
    assert word in words.replace("=50.0", "=50")
    assert "expected 1.0 and 0 while training" in words


def test_a_device_that_vllm_would_ignore_is_refused(tmp_path: Path) -> None:
    words = refusal(tmp_path, "", ("rollout.engine=vllm", "rollout.device=cuda:1"))
    assert "rollout.device=cuda:1: expected auto" in words
    load_settings(None, ("rollout.engine=vllm",), {})
    load_settings(None, ("rollout.device=cuda:1",), {})


def settings_of_size(num_positions: int, group_size: int, budget: int, window: int) -> Settings:
    words = (
        f"objective.parameters.num_positions={num_positions}",
        f"sampling.group_size={group_size}",
        f"sampling.max_thought_tokens={budget}",
        f"corpus.window_tokens={window}",
    )
    return load_settings(None, words, {})


def test_a_value_that_could_exceed_1_mib_is_rejected() -> None:
    assert check_run(settings_of_size(1, 8, 1024, 4096)).thinks
    with pytest.raises(InvalidInput) as refused:
        check_run(settings_of_size(16, 8, 1024, 4096))
    for way_out in ("num_positions", "sampling.group_size", "max_thought_tokens", "window_tokens"):
        assert way_out in str(refused.value)
    assert f"at most {MAX_VALUE_BYTES}" in str(refused.value)


def largest_result(settings: Settings) -> ScoredRollout:
    """A result of the maximum size that the settings allow."""
    sampling, parameters = settings.sampling, settings.objective.parameters
    N, L, G = settings.corpus.window_tokens, sampling.max_thought_tokens, sampling.group_size
    largest, version = 2**32 - 1, 2**64 - 1
    floats, ids = (-1.5,) * N, (largest,) * N
    document = Document("d" * 500, "s" * 100, ids, ids, tuple(range(N)), floats, floats)
    K = parameters["num_positions"]
    position = Position(2**31, (largest,) * parameters.get("target_tokens", 1))
    task = Task(
        version, version, version, version, "rlp", "{}" * 100, document, (position,) * K,
        Prompting((1,) * 20, (2,) * 20, (3,) * 20, (4,) * 20), Sampling(G, L, 0.7, (3,) * 4), version,
    )  # fmt: skip
    thought = Thought((largest,) * L, (-1.5,) * L, (VersionSpan(version, L),), closed=True)
    rollout = Rollout(task, ((thought,) * G,) * K, "rollout-" + "a" * 60)
    numbers_KG = ((-1.5,) * G,) * K
    return ScoredRollout(rollout, numbers_KG, numbers_KG, (-1.5,) * K, version, version, "r" * 60)


@pytest.mark.parametrize("shape", [(1, 2, 1, 4), (1, 8, 32, 4096), (40, 2, 1, 256), (3, 8, 64, 1)])
def test_no_result_exceeds_the_upper_bound(shape: tuple[int, int, int, int]) -> None:
    settings = settings_of_size(*shape)
    bound = largest_value_bytes(settings, objectives.load("rlp", settings.objective.parameters))
    assert len(wire.encode_scored(largest_result(settings))) <= bound


def test_plain_next_token_training_needs_no_group_and_no_redis() -> None:
    settings = load_settings(None, ("objective.name=ntp", "sampling.group_size=1"), {})
    check_redis(settings, check_run(settings))


def test_thinking_needs_redis() -> None:
    with pytest.raises(InvalidInput, match=r"needs Redis and replicas; expected redis\.url"):
        check_redis(Settings(), check_run(Settings()))


def test_a_run_needs_a_corpus() -> None:
    with pytest.raises(InvalidInput, match=r"expected corpus\.path"):
        check_corpus(Settings())


def test_path_is_shorthand_for_one_named_source(tmp_path: Path) -> None:
    toml = "[corpus]\npath = 'a/books'\n[[corpus.sources]]\npath = 'b'\nname = 'n'\nweight = 2.0\n"
    sources = load(tmp_path, toml).corpus.resolved_sources()
    assert [(source.name, source.weight) for source in sources] == [("books", 1.0), ("n", 2.0)]


def test_the_resolved_configuration_repeats_the_run(tmp_path: Path) -> None:
    toml = "[[corpus.sources]]\npath = 'Füße'\n[[corpus.sources]]\npath = 'b'\nweight = 0.5\n"
    words: tuple[Any, ...] = (
        "learner.learning_rate=3e-5",
        "objective.parameters.positions=marked",
        'model.think_open="<\\"ö\\\\>"',
    )
    settings = load(tmp_path, toml, words, FORETHOUGHT_RUN_DIRECTORY="runs/x y")
    written = tmp_path / "deep" / "resolved.toml"
    write_resolved(settings, written)
    assert load_settings(written, (), {}) == settings


def test_the_default_configuration_survives_writing(tmp_path: Path) -> None:
    write_resolved(Settings(), tmp_path / "resolved.toml")
    assert load_settings(tmp_path / "resolved.toml", (), {}) == Settings()


def test_configurations_are_shipped() -> None:
    assert SHIPPED


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_every_shipped_configuration_is_sound(file: Path, tmp_path: Path) -> None:
    settings = load_settings(file, ("corpus.path=anything",), {})
    check_run(settings)
    check_corpus(settings)
    write_resolved(settings, tmp_path / "resolved.toml")
    assert load_settings(tmp_path / "resolved.toml", (), {}) == settings


def test_a_redis_url_is_not_written(tmp_path: Path) -> None:
    settings = load_settings(None, ("redis.url=redis://:s3cret@10.0.0.1/0",), {})
    write_resolved(settings, tmp_path / "resolved.toml")
    assert "s3cret" not in (tmp_path / "resolved.toml").read_text(encoding="utf-8")
    assert load_settings(tmp_path / "resolved.toml", (), {}).redis.url == ""
