"""What the VLM nodes have in common."""

from __future__ import annotations

from comfy_api.latest import io

from .sockets import Controller, Verifier


def max_tokens_input(
    default: int = 4096,
    most: int = 65536,
    tooltip: str = "Tokens that an answer may have. Models that think aloud need more.",
) -> io.Input:
    return io.Int.Input("max_tokens", default=default, min=64, max=most, tooltip=tooltip)


def image_side_input() -> io.Input:
    return io.Int.Input(
        "image_side",
        default=1024,
        min=64,
        max=4096,
        step=32,
        tooltip="Longer side of the images that it looks at, in pixels. Smaller is faster.",
    )


def roles() -> list[io.Output]:
    return [Controller.Output(display_name="controller"), Verifier.Output(display_name="verifier")]
