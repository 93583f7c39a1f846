"""What the learner tells: metrics.jsonl, Prometheus, and how well it predicts without thinking."""
