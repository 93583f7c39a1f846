"""The demo: a small base model learns to think, through the real services, in minutes on two cores."""
