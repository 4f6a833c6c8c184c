"""Fixtures that several rooms share: one ComfyUI server serves the whole session."""

from .comfy_fixtures import client, server

__all__ = ["client", "server"]
