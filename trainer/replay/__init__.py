"""The check that sampler and learner compute the same function: a few sampled tokens, replayed."""
