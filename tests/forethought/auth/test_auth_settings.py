"""Settings for tokens and passwords: which are rejected, and that no secret is ever written or shown."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from forethought.cli.doctor import Level, configuration_checks
from forethought.cli.plan import Plan, prepare
from forethought.cli.summary import opening_lines
from forethought.config import load_settings, write_resolved
from forethought.config.redis_password import with_password
from forethought.errors import InvalidInput

SECRETS = {"FORETHOUGHT_AUTH_TOKEN": "s3cret-run", "FORETHOUGHT_AUTH_CLIENT_TOKEN": "s3cret-client"}
REDIS = "redis.url=redis://127.0.0.1:1/0"
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith("FORETHOUGHT_")}


@pytest.fixture
def books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books").mkdir()
    (tmp_path / "books/one.txt").write_text("a text")
    return tmp_path


# Settings


@pytest.mark.parametrize("token", ["1e5", "0x12", "true", "12_3", '"quoted"', "a.b=c", "-_~+/="])
def test_a_token_from_the_environment_is_taken_verbatim(token: str) -> None:
    settings = load_settings(None, (), {"FORETHOUGHT_AUTH_TOKEN": token})
    assert settings.auth.token.get_secret_value() == token


@pytest.mark.parametrize("word", ["auth.token=s3cret", "auth.client_token='s3cret'"])
def test_a_token_on_the_command_line_is_refused(word: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        load_settings(None, (word,), {})
    key = word.partition("=")[0]
    assert f"FORETHOUGHT_{key.replace('.', '_').upper()}" in str(refused.value)
    assert f"{key}_file=FILE" in str(refused.value)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("token = 's3cret'\ntoken_file = 'f'", "both auth.token and auth.token_file are given"),
        ("client_token = 's3cret'\nclient_token_file = 'f'", "both auth.client_token and"),
        ("open = true\ntoken = 's3cret'", "auth.open is true and a token is given"),
        ("open = true\nclient_token_file = 's3cret'", "auth.open is true and a token is given"),
        ("token = 's3cret'\nnext = 1", "auth.next: unknown key"),
        ("token = ['s3cret']", "auth.token: Input should be"),
        ("token = 12.5", "auth.token: Input should be"),
    ],
)
def test_bad_auth_settings_are_reported_without_their_values(
    tmp_path: Path, toml: str, message: str
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(f"[auth]\n{toml}\n")
    with pytest.raises(InvalidInput) as refused:
        load_settings(file, (), {})
    assert message in str(refused.value)
    assert "s3cret" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_no_token_is_shown_or_written(tmp_path: Path) -> None:
    settings = load_settings(None, (), SECRETS)
    assert "s3cret" not in repr(settings) + str(settings)
    written = tmp_path / "resolved.toml"
    write_resolved(settings, written)
    assert "s3cret" not in written.read_text()
    assert not load_settings(written, (), {}).auth.has_tokens


def test_paths_of_secrets_are_written(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("p")
    words = (
        "auth.token_file=t",
        "auth.client_token_file=c",
        f"redis.password_file={tmp_path}/password",
    )
    write_resolved(load_settings(None, words, {}), tmp_path / "resolved.toml")
    again = load_settings(tmp_path / "resolved.toml", (), {})
    assert (again.auth.token_file, again.auth.client_token_file) == ("t", "c")
    assert again.redis.password_file == f"{tmp_path}/password"


# The password of Redis


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h:6379/0", "redis://:{}@h:6379/0"),
        ("redis://user@h/2?x=1", "redis://user:{}@h/2?x=1"),
        ("rediss://user:@h", "rediss://user:{}@h"),
        ("unix:///run/redis.sock", "unix://:{}@/run/redis.sock"),
        ("redis://:own@h", "redis://:own@h"),
        ("memory://", "memory://"),
        ("", ""),
    ],
)
def test_a_password_joins_a_url_that_has_none(tmp_path: Path, url: str, expected: str) -> None:
    (tmp_path / "password").write_text("p@s/s: %ö\n", encoding="utf-8")
    joined = with_password(url, str(tmp_path / "password"))
    assert joined == expected.format("p%40s%2Fs%3A%20%25%C3%B6")
    if "{}" in expected:
        assert unquote(urlsplit(joined).password or "") == "p@s/s: %ö"
    words = (f"redis.url={url}", f"redis.password_file={tmp_path}/password")
    assert load_settings(None, words, {}).redis.url == joined


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "no password"), (" \n", "no password"), ("a\nb\n", "2 lines"), (None, "No such file")],
)
def test_bad_password_files_are_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "password").write_text(text)
    with pytest.raises(InvalidInput, match=rf"redis\.password_file .*{message}"):
        load_settings(None, (REDIS, f"redis.password_file={tmp_path}/password"), {})


# What `up` passes to its child processes


def children(plan: Plan) -> list[tuple[tuple[str, ...], dict[str, str]]]:
    url = "redis://h/0"
    programs = [plan.trainer(url), plan.base_program(url), *plan.services(url)]
    return [(program.command, dict(program.environment)) for program in programs]


def test_up_is_open_where_no_token_is_given(books: Path) -> None:
    plan = prepare(None, ("corpus.path=books",))
    write_resolved(plan.settings, plan.children_config)
    assert load_settings(plan.children_config, (), {}).auth.open
    lines = "\n".join(opening_lines(plan, "redis://h/0"))
    assert "forethought serve rollout --redis-url redis://h/0 --run default auth.open=true" in lines
    assert "Authorization" not in lines


@pytest.mark.parametrize(
    ("word", "num_notes"),
    [
        ("run.seed=0", 0),
        ("redis.url=redis://127.0.0.1/0", 0),
        ("redis.url=redis://10.0.0.5/0", 1),
        ("reward.http_host=0.0.0.0", 1),
    ],
)
def test_up_warns_when_it_is_open_to_other_machines(books: Path, word: str, num_notes: int) -> None:
    words = ("corpus.path=books", "reward.http_port=0", word)  # 8080 may be taken, which is a note
    assert len(prepare(None, (*words, "reward.replicas=1")).notes) == num_notes
    (books / "token").write_text("t")
    closed = prepare(None, (*words, "auth.token_file=token"))
    assert closed.notes == ()


def test_up_passes_tokens_to_its_children_only_in_their_environment(
    books: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    plan = prepare(None, ("corpus.path=books",))
    write_resolved(plan.settings, plan.children_config)
    assert "s3cret" not in plan.children_config.read_text()
    for command, environment in children(plan):
        assert "s3cret" not in " ".join(command)
        assert {name: environment[name] for name in SECRETS} == SECRETS
    loaded = load_settings(plan.children_config, (), children(plan)[0][1] | SECRETS)
    assert (loaded.auth.token.get_secret_value(), loaded.auth.open) == ("s3cret-run", False)
    lines = "\n".join(opening_lines(plan, "redis://h/0"))
    assert '-H "Authorization: Bearer $FORETHOUGHT_AUTH_TOKEN"' in lines
    assert "s3cret" not in lines


def test_up_passes_on_the_path_of_a_token_file(books: Path) -> None:
    (books / "my token").write_text("# remark\n\nrun\n")
    plan = prepare(None, ("corpus.path=books", "auth.token_file=my token"))
    write_resolved(plan.settings, plan.children_config)
    assert load_settings(plan.children_config, (), {}).auth.token_file == "my token"
    (line,) = [line for line in opening_lines(plan, "redis://h/0") if "Authorization" in line]
    header = line.strip().removesuffix(" \\").removeprefix("-H ")
    shown = subprocess.run(["bash", "-c", f"echo {header}"], capture_output=True, text=True)
    assert shown.stdout == "Authorization: Bearer run\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("auth.token_file=absent",), "cannot read the token file absent"),
        (("auth.client_token_file=books/one.txt",), "holds whitespace"),
        (
            ("redis.password_file=books/one.txt",),
            "redis.password_file is given and redis.url is not",
        ),
    ],
)
def test_up_rejects_what_its_children_would(
    books: Path, words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        prepare(None, ("corpus.path=books", *words))
    assert message in str(refused.value)


def test_doctor_checks_tokens(books: Path) -> None:
    def level(*words: str) -> Level:
        checks = configuration_checks(None, ("corpus.path=books", "reward.http_port=0", *words))
        return next(check.level for check in checks if check.name == "tokens")

    assert level() is Level.OK
    assert level("auth.token_file=absent") is Level.FAIL


# Closed by default


@pytest.mark.parametrize(
    "words",
    [
        ("-m", "services.rollout", REDIS),
        ("-m", "services.reward", REDIS),
        ("-m", "forethought.cli", "serve", "rollout", REDIS),
        ("-m", "forethought.cli", "serve", "reward", REDIS),
        ("-m", "trainer", REDIS),
    ],
    ids=lambda words: " ".join(words[1:-1]),
)
def test_without_a_token_nothing_starts(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=CLEAN,
        timeout=50,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "no run token is set" in line
    assert "auth.open=true" in line


def test_next_token_training_needs_no_token(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "objective.name=ntp"],
        capture_output=True, text=True, cwd=tmp_path, env=CLEAN, timeout=50,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no corpus is configured" in done.stderr
