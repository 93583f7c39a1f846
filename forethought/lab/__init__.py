"""The laboratory: what measures, compares and shows models and runs; no service or learner imports it."""
