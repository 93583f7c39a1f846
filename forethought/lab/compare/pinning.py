"""The commits of the models and data sets of the hub that a comparison uses, the same in all its runs.

Design: the plan itself is rewritten before anything starts, so that every run and measurement gets commits
and finds what was downloaded. The price: a comparison without revisions that is resumed after a branch has
moved begins again, as after any change of its settings.
"""

from __future__ import annotations

from copy import deepcopy

from forethought.config.sections import CorpusSection, TextSection
from forethought.lab.compare.plan import DEMO_MODEL, ComparisonPlan, EvaluationEntry, Tables
from forethought.run.pinning import pinned_corpus, pinned_path


def pinned_plan(plan: ComparisonPlan) -> ComparisonPlan:
    """A plan with a commit for everything on the hub, all of it downloaded.

    Raises:
        InvalidInput: something is not available.
    """
    bases = tuple(
        base.model_copy(
            update={
                "model": base.model if base.model == DEMO_MODEL else pinned_path(base.model),
                "settings": _pinned(base.settings),
                "arm_settings": _pinned(base.arm_settings),
            }
        )
        for base in plan.bases
    )
    arms, stages = (
        tuple(entry.model_copy(update={"settings": _pinned(entry.settings)}) for entry in entries)
        for entries in (plan.arms, plan.stages)
    )
    changed = {
        "settings": _pinned(plan.settings),
        "bases": bases,
        "arms": arms,
        "stages": stages,
        "evaluation": _pinned_evaluation(plan.evaluation),
    }
    return plan.model_copy(update=changed)


def _pinned(tables: Tables) -> Tables:
    """The tables of a run, of which one with a corpus names its sources."""
    corpus = tables.get("corpus", {})
    if not corpus.keys() & {"path", "sources"}:
        return tables
    section = pinned_corpus(CorpusSection.model_validate(corpus))
    changed = deepcopy(tables)
    if section.path:
        changed["corpus"] |= _at(section.path, section.revision)
    for table, source in zip(changed["corpus"].get("sources", ()), section.sources, strict=True):
        table |= _at(source.path, source.revision)
    return changed


def _at(path: str, revision: str) -> dict[str, str]:
    return {"path": path, "revision": revision} if revision else {"path": path}


def _pinned_evaluation(entry: EvaluationEntry) -> EvaluationEntry:
    keys = {name: getattr(entry, name) for name in TextSection.model_fields}
    section = pinned_corpus(CorpusSection(path=entry.corpus, **keys))
    return entry.model_copy(update={"corpus": section.path, "revision": section.revision})
