"""From scored rollouts to what the learner is given: filters, advantages, weights, thought trees."""
