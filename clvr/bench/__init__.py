"""Benchmarks: prompts as suites, a run of the loop for each, images laid out as the official scorers expect them,
and our own scorer by judges."""
