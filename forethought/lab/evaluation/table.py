"""The tables of a report, for the terminal.

Design: few checkpoints are shown in full, one block each; for a long series the first table shows
accuracy over the checkpoints and the second the last checkpoint in full. Everything else is in eval.json.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

_MAX_WHOLE = 3
_COLUMNS = (
    ("think_accuracy", "think\nacc"),
    ("no_think_accuracy", "plain\nacc"),
    ("reward_share", "\nreward"),
    ("think_nll", "think\nNLL"),
    ("marginal_nll", "marg.\nNLL"),
    ("no_think_nll", "plain\nNLL"),
    ("information_gain", "\ngain"),
)
_CAPTION = (
    "acc: the target is the likeliest token (greedy), after a sampled thought and without (plain); reward: "
    "share of correct sampled predictions; NLL and gain in nats, with the gain's 95 % interval over "
    "positions; mean thought length in tokens, and share truncated at the budget"
)


def tables(report: dict[str, Any]) -> list[Table]:
    """The tables of a report, in reading order; they fit 80 columns."""
    checkpoints = report["checkpoints"]
    if len(checkpoints) <= _MAX_WHOLE:
        whole = [_whole(checkpoint) for checkpoint in checkpoints]
    else:
        whole = [_movement(report), _whole(checkpoints[-1])]
    whole[-1].caption = _CAPTION
    return whole


def quartile_tables(report: dict[str, Any]) -> list[Table]:
    """Where thoughts help: the gain by quartiles, of the checkpoints that :func:`tables` shows in full."""
    checkpoints = report["checkpoints"]
    shown = checkpoints if len(checkpoints) <= _MAX_WHOLE else checkpoints[-1:]
    return [_by_quartile(checkpoint) for checkpoint in shown if checkpoint["quartiles"]]


def lines(report: dict[str, Any]) -> list[str]:
    """The conditions of the evaluation, to print above the tables."""
    corpus, sampling = report["corpus"], report["sampling"]
    return [
        f"corpus      {', '.join(corpus['paths'])}: {corpus['num_documents']} windows of at most "
        f"{corpus['window_tokens']} tokens; {corpus['note']}",
        f"proxy       {report['proxy']}",
        f"thoughts    {sampling['group_size']} per position, at most {sampling['max_thought_tokens']} "
        f"tokens, temperature {sampling['temperature']:g}, prompt of {report['objective']['name']}, seed "
        f"{report['seed']}; computed in {report['dtype']}; settings from {report['conditions_from']}",
        *(
            f"{name:<11} {split['num_positions']} of {split['num_candidates']} positions: "
            f"{split['definition']}"
            for name, split in report["splits"].items()
        ),
    ]


def law_lines(report: dict[str, Any]) -> list[str]:
    """The fitted law of every split, or why there is none; empty unless the report is of a series."""
    metric = report["accuracy"]
    return [_law_line(name, laws[metric], metric) for name, laws in report["laws"].items()]


def _law_line(name: str, law: dict[str, Any], metric: str) -> str:
    if "reason" in law:
        return f"{name:<11} no law: {law['reason']}"
    known = f" [{law['limit_low']:.3f}, {law['limit_high']:.3f}]" if law["limit_low"] else ""
    text = (
        f"{name:<11} {metric} = {law['amplitude']:.3g} / C^{law['exponent']:.3g} + "
        f"{law['limit']:.3f}{known}   R2 {law['r_squared']:.3f}"
    )
    return f"{text}   ({law['caveat']})" if law["caveat"] else text


def _whole(checkpoint: dict[str, Any]) -> Table:
    """One checkpoint in full, one row per split."""
    first, perplexity = checkpoint["splits"]["all"], checkpoint["perplexity"]
    known = "" if perplexity is None else f"   perplexity of plain text {perplexity:.3f}"
    shown = [(key, title) for key, title in _COLUMNS if key in first]
    largest = max(map(int, first["pass_at"]))
    titles = [title for _, title in shown]
    drawn = _table(
        f"{checkpoint['label']}{known}",
        ["\nsplit", *titles, "\n95 %", f"pass\n@{largest}", "tok-\nens", "\ncut"],
    )
    for name, of in checkpoint["splits"].items():
        drawn.add_row(
            name,
            *(f"{of[key]:.2f}" if key.endswith("nll") else f"{of[key]:.3f}" for key, _ in shown),
            f"{of['information_gain_low']:.2f} {of['information_gain_high']:.2f}",
            f"{of['pass_at'][str(largest)]:.2f}",
            f"{of['thought_tokens_mean']:.1f}",
            f"{of['truncated_share']:.0%}",
        )
    return drawn


def _by_quartile(checkpoint: dict[str, Any]) -> Table:
    """One row per quarter of a split's positions by a measure."""
    drawn = _table(
        f"{checkpoint['label']}   gain where a measure is low and high, by quartiles of positions",
        ["split", "by", "part", "from", "to", "positions", "plain NLL", "gain", "95 %"],
    )
    for table in checkpoint["quartiles"]:
        for number, (name, of) in enumerate(table["splits"].items()):
            drawn.add_row(
                *((table["of"], table["by"]) if number == 0 else ("", "")),
                name,
                *(f"{of[key]:.2f}" for key in ("from", "to")),
                str(of["num_positions"]),
                f"{of['no_think_nll']:.2f}",
                f"{of['information_gain']:.3f}",
                f"{of['information_gain_low']:.2f} {of['information_gain_high']:.2f}",
            )
    return drawn


def _movement(report: dict[str, Any]) -> Table:
    """One row per checkpoint: the accuracy of every split, gain at all and noise, perplexity."""
    metric, splits = report["accuracy"], list(report["splits"])
    gains = [name for name in ("all", "noise") if name in splits]
    drawn = _table(
        f"{metric} by split, and gains in nats; C: training compute ({report['compute_unit']})",
        ["step", "C", *splits, *(f"gain\n{name}" for name in gains), "perpl."],
    )
    for checkpoint in report["checkpoints"]:
        of = checkpoint["splits"]
        drawn.add_row(
            checkpoint["label"] if checkpoint["step"] is None else str(checkpoint["step"]),
            _or_nothing(checkpoint["compute"], ".3g"),
            *(f"{of[name][metric]:.3f}" for name in splits),
            *(f"{of[name]['information_gain']:.3f}" for name in gains),
            _or_nothing(checkpoint["perplexity"], ".3f"),
        )
    return drawn


def _table(title: str, columns: list[str]) -> Table:
    from rich import box
    from rich.table import Table

    drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for number, column in enumerate(columns):
        drawn.add_column(column, justify="right" if number else "left", overflow="fold")
    return drawn


def _or_nothing(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
