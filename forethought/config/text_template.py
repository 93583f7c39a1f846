"""Templates that make a record's text from its columns: ``{question}\\n{answer}``.

Design: Python's ``{column}`` and nothing more of its formats, because a column's name may hold a dot or a
bracket, and no attribute of a value is anyone's business. The price: numbers are written as Python does.
"""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter


def columns_of(template: str) -> tuple[str, ...]:
    """The columns that a template names, each once, in their order.

    Raises:
        ValueError: it names none, or has more than plain ``{column}`` in it.
    """
    return tuple(dict.fromkeys(name for _, name in _parts(template) if name))


def filled(template: str, record: Mapping[str, object]) -> str:
    """The text that a valid template makes from a record with all its columns."""
    return "".join(
        literal + (str(record[name]) if name else "") for literal, name in _parts(template)
    )


def _parts(template: str) -> list[tuple[str, str]]:
    """(text, column after it or "") of a template.

    Raises:
        ValueError: as :func:`columns_of`.
    """
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(_refusal(template, str(error))) from error
    for _, name, details, conversion in parsed:
        if name == "" or details or conversion:
            raise ValueError(_refusal(template, "a brace holds something else"))
    if not any(name for _, name, _, _ in parsed):
        raise ValueError(_refusal(template, "it names no column"))
    return [(literal, name or "") for literal, name, _, _ in parsed]


def _refusal(template: str, reason: str) -> str:
    return (
        f"template {template!r}: {reason}; expected columns in braces, such as "
        '"{question}\\n{answer}", and {{ and }} for braces of the text'
    )
