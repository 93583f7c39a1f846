"""Forethought: reinforcement pretraining as services. Importing this loads nothing heavy."""

__version__ = "0.1.0"
