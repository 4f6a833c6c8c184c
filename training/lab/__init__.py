"""The laboratory: the paper's ablation, end to end in the built-in world."""
