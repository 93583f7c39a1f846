"""What objectives are made of: base class, positions, prompts, grading, sample selection, plugins."""
