"""Test utilities for third-party parts: the same checks that the built-in parts have to pass."""
