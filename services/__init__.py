"""The replicated processes: ``services.rollout`` samples thoughts, ``services.reward`` scores them."""
