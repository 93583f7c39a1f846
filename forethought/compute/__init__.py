"""Tensor code shared by learner, scorer, torch engine and evaluation.

It imports torch; the rest of the library imports it only inside functions (but for ``lab.curation``), so
``import forethought`` stays light.
"""
