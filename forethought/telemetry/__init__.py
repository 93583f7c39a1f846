"""Observability of a process: the ops port, metrics and logs."""
