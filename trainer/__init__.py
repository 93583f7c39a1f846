"""The learner and all that belongs to it: feed, batches, EMA, checkpoints and the publisher."""
