"""What touches tensors, shared by learner, scorer, torch engine and evaluation.

It may import torch, and nothing imports it at top level, so ``import forethought`` stays light.
"""
