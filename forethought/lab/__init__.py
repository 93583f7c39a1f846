"""The laboratory: measures, compares and reports on models and runs; no service or learner imports it."""
