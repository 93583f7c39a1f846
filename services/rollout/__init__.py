"""The rollout service: samples thoughts for tasks with the newest pushed policy."""
