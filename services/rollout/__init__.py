"""The rollout service: samples thoughts for tasks with the newest policy it was given."""
