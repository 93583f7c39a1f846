"""The reward service: how much more likely a thought makes what follows, for anyone who asks."""
