"""Tensor code shared by learner, scorer, torch engine and evaluation.

It may import torch and is never imported at top level, so ``import forethought`` stays light.
"""
