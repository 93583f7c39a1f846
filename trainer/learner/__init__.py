"""The optimizer step: micro-batches, loss, optimizer, EMA baseline."""
