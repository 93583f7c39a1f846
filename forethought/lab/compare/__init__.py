"""Comparing objectives on one corpus: arms x seeds x bases, with equal budgets."""
