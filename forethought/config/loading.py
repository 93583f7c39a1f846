"""Loading settings from their four sources, and writing the resolved configuration.

``FORETHOUGHT_LEARNER_STEPS=10`` sets ``learner.steps``: the section is the part between the prefix and
the next underscore. On the command line it is ``learner.steps=10``. Values in the environment and on
the command line are parsed as TOML, or taken as plain strings if they are not valid TOML, are a date, or
belong to a setting that is a string (the folder ``2024-01-01``, the run ``1e3``). A token is
always taken verbatim, and never from the command line, which every user of the machine can read.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from forethought.config.redis_password import with_password
from forethought.config.sections import Settings
from forethought.errors import InvalidInput

ENVIRONMENT_PREFIX = "FORETHOUGHT_"
_TOKENS = (("auth", "token"), ("auth", "client_token"))


def load_settings(
    path: Path | None = None,
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Resolve the settings.

    ``path`` is a TOML file; ``overrides`` are ``section.key=value`` arguments of the command line.

    Raises:
        InvalidInput: an unreadable file, an unknown key or a value out of range; lists every problem.
    """
    merged: dict[str, Any] = read_toml(path) if path else {}
    origins: list[_Origin] = []
    environment = os.environ if environment is None else environment
    for origin, layer in (*_of_environment(environment), *_of_command_line(overrides)):
        merge(merged, layer)
        origins.append(origin)
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        message = _explain(error, path, origins)
        raise InvalidInput(message) from None  # the cause would show a token
    redis = settings.redis
    url = with_password(redis.url, redis.password_file)
    return settings.model_copy(update={"redis": redis.model_copy(update={"url": url})})


def write_resolved(settings: Settings, path: Path) -> None:
    """Write every resolved value as TOML, so that a run can be repeated from it.

    Tokens and the Redis URL are left out: the URL may hold a password, and an embedded Redis gets a new
    one each time. The paths of token and password files are written.
    """
    import tomli_w

    values = settings.model_dump(mode="json")
    for section, key in (("redis", "url"), *_TOKENS):
        values[section][key] = ""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tomli_w.dumps(values), encoding="utf-8")


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        InvalidInput: it cannot be read, or is not valid TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors may write a BOM
    except OSError as error:
        raise InvalidInput(
            f"cannot read configuration {path}: {error.strerror}; give the path of a TOML file"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"configuration {path} is not valid TOML: {error}") from error


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where a setting other than a file's was given, for messages about it."""

    keys: tuple[str, ...]
    place: str

    def is_of(self, location: tuple[int | str, ...], is_unknown: bool) -> bool:
        """Whether a fault at ``location`` is about this setting; an unknown section is about all in it."""
        num_keys = min(len(location), len(self.keys)) if is_unknown else len(self.keys)
        return self.keys[:num_keys] == location[:num_keys]


def _of_environment(
    environment: Mapping[str, str],
) -> Iterator[tuple[_Origin, dict[str, Any]]]:
    for name in sorted(environment):
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        section, _, key = name.removeprefix(ENVIRONMENT_PREFIX).lower().partition("_")
        keys, text = (section, key), environment[name]
        value = text if keys in _TOKENS else _value(text, keys, Settings)
        yield _Origin(keys, f"as {name} in the environment"), {section: {key: value}}


def _of_command_line(overrides: Sequence[str]) -> Iterator[tuple[_Origin, dict[str, Any]]]:
    for word in overrides:
        yield _Origin(_keys(word), "on the command line"), override(word)


def _keys(word: str) -> tuple[str, ...]:
    return tuple(word.partition("=")[0].strip().split("."))


def override(word: str, num_keys: int = 2, schema: type[BaseModel] = Settings) -> dict[str, Any]:
    """The tables of a ``section.key=value`` override of ``schema``, with at least ``num_keys`` keys.

    Raises:
        InvalidInput: it is not of that form, or it sets a token.
    """
    dotted, equals, text = word.partition("=")
    keys = _keys(word)
    if not equals or len(keys) < num_keys or not all(keys):
        raise InvalidInput(f"got {word!r}; expected section.key=value, such as learner.steps=10")
    if keys in _TOKENS:
        raise InvalidInput(
            f"{dotted.strip()} is given on the command line, which every user of this machine can read; "
            f"expected it in the environment ({_environment_name(keys)}) or in a file: "
            f"{dotted.strip()}_file=FILE"
        )
    layer: Any = _value(text, keys, schema)
    for key in reversed(keys):
        layer = {key: layer}
    assert isinstance(layer, dict)
    return layer


def _environment_name(keys: Sequence[str]) -> str:
    return ENVIRONMENT_PREFIX + "_".join(keys).upper()


def _value(text: str, keys: Sequence[str], schema: type[BaseModel]) -> Any:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    if isinstance(value, str):  # quoted
        return value
    is_text = isinstance(value, date | time) or _is_string(keys, schema)
    return text.strip() if is_text else value


def _is_string(keys: Sequence[str], schema: Any) -> bool:
    """Whether the setting at ``keys`` is a string or a path."""
    for key in keys:
        field = schema.model_fields.get(key) if _is_model(schema) else None
        schema = field.annotation if field else None
    return schema in (str, Path)


def merge(into: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Merge ``layer`` into ``into`` recursively; ``layer`` wins."""
    for key, value in layer.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def _explain(error: ValidationError, path: Path | None, origins: Sequence[_Origin]) -> str:
    lines = [f"invalid configuration{f' ({path})' if path else ''}:"]
    for fault in error.errors():
        where = ".".join(map(str, fault["loc"]))
        given = _given(fault["loc"], fault["type"] == "extra_forbidden", origins)
        if fault["type"] == "extra_forbidden":
            lines.append(f"  {where}: unknown key{_suggestion(fault['loc'])}{given}")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            is_shown = where and fault["type"] != "value_error" and fault["loc"][0] != "auth"
            got = f" (got {fault['input']!r})" if is_shown else ""
            lines.append(f"  {where + ': ' if where else ''}{message}{got}{given}")
    return "\n".join(lines)


def _given(location: tuple[int | str, ...], is_unknown: bool, origins: Sequence[_Origin]) -> str:
    """Where the setting at fault was given, if that is not the file; the last place wins."""
    places = (origin.place for origin in reversed(origins) if origin.is_of(location, is_unknown))
    place = next(places, None)
    return f"; given {place}" if place else ""


def _suggestion(location: tuple[int | str, ...]) -> str:
    model: Any = Settings
    for key in location[:-1]:
        if isinstance(key, int):  # an item of a tuple of sections
            model = next(iter(get_args(model)), None)
            continue
        field = model.model_fields.get(key) if _is_model(model) else None
        model = field.annotation if field else None
    known = sorted(model.model_fields) if _is_model(model) else []
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known here: {', '.join(known)}" if known else ""


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
