"""The learner process: task feed, batch building, EMA baseline, checkpoints and weight publishing."""
