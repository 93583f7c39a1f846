"""The demonstration: a tiny base model that learns to think on a synthetic corpus."""
