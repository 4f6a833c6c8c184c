"""What this ComfyUI can do. Asked while ComfyUI starts, so that nothing of the engine is loaded for it."""

from __future__ import annotations

from ..clvr.errors import HostError


def host_lacks_klein() -> str:
    """Why this ComfyUI cannot run FLUX.2 [klein], or ''."""
    import comfy.text_encoders.flux
    from comfyui_version import __version__

    if "KleinTokenizer" in vars(comfy.text_encoders.flux):
        return ""
    return f"ComfyUI {__version__} does not know FLUX.2 [klein]."


def require_klein() -> None:
    """Raises HostError where this ComfyUI is too old."""
    if lack := host_lacks_klein():
        raise HostError(lack, "Update ComfyUI to a release of 2026, or draw with CLVR Generator (diffusers).")
