"""From scored rollouts to the learner's input: filters, advantages, weights, thought trees."""
