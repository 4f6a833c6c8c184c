"""Closed-Loop Visual Reasoning: plan, draw, verify, correct, stop. The engine; it knows no ComfyUI."""

__version__ = "0.1.0"
