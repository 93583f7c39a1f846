"""The common part of every replica: registration, weights, health, the work loop, draining."""
