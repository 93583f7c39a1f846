"""Benchmarks report speed as a ratio to a peer, both measured in the same run; the last line is JSON."""
