"""The learner's metrics: metrics.jsonl, Prometheus, and its no-think likelihood."""
