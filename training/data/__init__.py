"""The data engine (sections 3.1, A.3): prompts in, verified trajectories out. `python -m training.data`."""
