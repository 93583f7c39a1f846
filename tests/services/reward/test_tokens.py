"""Authentication tokens: reading, comparison, choice, and refusals with a reason."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from forethought.auth import Bearer, Guard, Role, Tokens, tokens, tokens_of
from forethought.auth.tokens import FileTokens
from forethought.config.sections import AuthSection
from forethought.errors import Forbidden, InvalidInput, Unauthenticated

GUARD = Guard(Tokens(("run", "run-before")), Tokens(("client",)))
NO_TOKEN = "expected at least one line"


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("text", ["one", "one\n", "\n# first\r\n  one\t\r\n\n", "#\none"])
def test_blank_lines_and_comments_are_skipped(tmp_path: Path, text: str) -> None:
    assert FileTokens(written(tmp_path / "t", text)).now() == ("one",)


def test_the_first_is_sent_and_all_are_accepted(tmp_path: Path) -> None:
    of_file = tokens_of("", str(written(tmp_path / "t", "one\ntwo\n")), "auth.token")
    assert Bearer(of_file).header() == (("authorization", "Bearer one"),)
    assert [of_file.accept(t) for t in ("one", "two", "", "on", "oneone", "ö")] == [
        True, True, False, False, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", NO_TOKEN),
        ("\n# nothing\n", NO_TOKEN),
        ("good\nsEcret two\n", r"line 2 of the token file .*t holds whitespace"),
        ("sEcret\u00e4\n", "line 1 of the token file"),
        ("sEcret\x07\n", "line 1 of the token file"),
    ],
)
def test_files_without_valid_tokens_are_refused_and_not_shown(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message) as refused:
        FileTokens(written(tmp_path / "t", text))
    assert "sEcret" not in str(refused.value)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name, reason in (("absent", "No such file"), (".", "Is a directory"), ("binary", "UTF-8")):
        with pytest.raises(InvalidInput, match=f"cannot read the token file .*{reason}"):
            tokens_of("", str(tmp_path / name), "auth.token")


def test_an_invalid_value_is_refused_and_not_shown() -> None:
    for value in ("sEcret two", "sEcret\n", "sEcretä"):
        with pytest.raises(InvalidInput, match=r"auth\.token holds whitespace") as refused:
            tokens_of(value, "", "auth.token")
        assert "sEcret" not in str(refused.value)


def test_a_value_and_a_file_exclude_each_other() -> None:
    with pytest.raises(InvalidInput, match=r"both auth\.token and auth\.token_file"):
        tokens_of("one", "file", "auth.token")


def test_a_file_is_read_again_only_after_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock_s, num_reads, read = [100.0], [0], tokens.read_tokens

    def counting(path: Path) -> tuple[str, ...]:
        num_reads[0] += 1
        return read(path)

    monkeypatch.setattr(tokens.time, "monotonic", lambda: clock_s[0])
    monkeypatch.setattr(tokens, "read_tokens", counting)
    file = FileTokens(written(tmp_path / "t", "one"))
    written(tmp_path / "t", "two-2")
    assert file.now() == ("one",)  # not checked again yet
    clock_s[0] += tokens.LOOK_INTERVAL_S
    assert file.now() == ("two-2",)
    clock_s[0] += tokens.LOOK_INTERVAL_S
    assert (file.now(), num_reads) == (("two-2",), [2])


@pytest.mark.parametrize("text", ["", "two tokens", None])
def test_a_file_that_became_invalid_leaves_the_tokens_in_force(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    text: str | None,
) -> None:
    monkeypatch.setattr(tokens, "LOOK_INTERVAL_S", 0.0)
    path = written(tmp_path / "t", "one")
    file = FileTokens(path)
    path.unlink() if text is None else written(path, text)
    with caplog.at_level(logging.INFO):
        assert [file.now(), file.now()] == [("one",), ("one",)]
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert file.accept(written(path, "repaired").read_text())
    assert "repaired" not in caplog.text


@pytest.mark.parametrize("authorization", ["Bearer run", "bearer run-before", "BEARER  run "])
def test_the_runs_token_grants_everything(authorization: str) -> None:
    for role in Role:
        GUARD.check(authorization, role)


def test_a_clients_token_grants_only_the_client_role() -> None:
    GUARD.check("Bearer client", Role.CLIENT)
    with pytest.raises(Forbidden, match="expected the run's token"):
        GUARD.check("Bearer client", Role.RUN)


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "run", "Token run"])
def test_a_missing_token_is_reported(authorization: str | None) -> None:
    with pytest.raises(Unauthenticated, match="got no token"):
        GUARD.check(authorization, Role.CLIENT)


def test_without_tokens_nothing_is_accepted() -> None:
    for authorization in (None, "Bearer ", "Bearer x"):
        with pytest.raises(Unauthenticated):
            Guard().check(authorization, Role.CLIENT)


def test_an_open_guard_requires_no_token() -> None:
    Guard.of_replica(AuthSection(open=True)).check(None, Role.RUN)


def test_a_replica_is_closed_by_default_and_requires_the_runs_token() -> None:
    for section in (AuthSection(), AuthSection(client_token="client")):
        with pytest.raises(InvalidInput) as refused:
            Guard.of_replica(section)
        for way_out in ("auth.token_file=FILE", "FORETHOUGHT_AUTH_TOKEN", "auth.open=true"):
            assert way_out in str(refused.value)


def test_a_generated_token_begins_with_no_hyphen() -> None:
    """`--token -abc` is an option to most commands; one in 64 tokens was of that kind."""
    tokens = [Guard.standalone(AuthSection())[1] or "-" for _ in range(1000)]
    assert not [token for token in tokens if token.startswith("-")]


def test_a_standalone_service_generates_a_token_only_if_none_is_given() -> None:
    first, second = Guard.standalone(AuthSection()), Guard.standalone(AuthSection())
    assert first[1]
    assert second[1] not in (None, first[1])
    first[0].check(f"Bearer {first[1]}", Role.CLIENT)
    with pytest.raises(Unauthenticated):
        first[0].check(f"Bearer {second[1]}", Role.CLIENT)
    given, generated_token = Guard.standalone(AuthSection(client_token="client"))
    given.check("Bearer client", Role.CLIENT)
    assert generated_token is None
    assert Guard.standalone(AuthSection(open=True))[1] is None


def test_a_client_takes_the_first_token_of_the_environment(tmp_path: Path) -> None:
    names = ("TOKEN", "TOKEN_FILE", "CLIENT_TOKEN", "CLIENT_TOKEN_FILE")
    file = str(written(tmp_path / "t", "of-file"))
    values = ("run", file, "client", file)
    environment = {
        f"FORETHOUGHT_AUTH_{name}": value for name, value in zip(names, values, strict=True)
    }
    sent = []
    for name in names:
        ((_, header),) = Bearer.of_client(None, environment).header()
        sent.append(header)
        del environment[f"FORETHOUGHT_AUTH_{name}"]
    assert sent == ["Bearer run", "Bearer of-file", "Bearer client", "Bearer of-file"]
    assert Bearer.of_client(None, environment).header() == ()
    assert Bearer.of_client("", {"FORETHOUGHT_AUTH_TOKEN": "run"}).header() == ()
    with pytest.raises(InvalidInput, match="token holds whitespace"):
        Bearer.of_client("two words")
