"""Formatting numbers for reports, and reading them from JSON."""

from __future__ import annotations

from typing import Any


def duration(seconds: float) -> str:
    """A readable duration.

    Example:
        ``duration(3700)`` is ``"1h 1m"``
    """
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {rest_s}s" if minutes else f"{rest_s}s"


def signed(value: float) -> str:
    """A number with about three significant digits.

    Example:
        ``signed(0.12345)`` is ``"0.123"``
    """
    return (
        f"{value:,.0f}"
        if abs(value) >= 1000
        else f"{value:.3g}"
        if abs(value) >= 10
        else f"{value:.3f}"
    )


def number(value: Any) -> float | None:
    """A JSON value as a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < float("inf") else None
