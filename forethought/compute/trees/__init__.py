"""Thought trees: rows that begin alike, their common part computed once and attended to by all."""
