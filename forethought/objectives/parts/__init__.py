"""What objectives are made of: the base class, positions, prompts, grading, selection of samples, plugins."""
