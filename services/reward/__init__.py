"""The reward service: how much more likely a thought makes the text that follows."""
