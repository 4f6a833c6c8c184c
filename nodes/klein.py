"""FLUX.2 [klein] as ComfyUI runs it: what a context becomes on the way to a sampler.

Text goes through the CLIP's own klein template, references through the VAE. Both are kept for the next round,
for as long as ComfyUI keeps the CLIP and the VAE themselves."""

from __future__ import annotations

import hashlib
import weakref
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..clvr.context import fit
from ..clvr.errors import SettingError
from ..clvr.flux2.limits import LONGEST_TEXT, references, scaled
from ..clvr.flux2.recent import Recent
from .host import require_klein
from .pixels import to_tensor

if TYPE_CHECKING:
    from comfy.sd import CLIP, VAE
    from PIL.Image import Image
    from torch import Tensor

    from ..clvr.context import Context

Conditioning = list[list[Any]]
"""ComfyUI's: pairs of an embedding [1, tokens, width] and a dictionary."""
CHANNELS = 128
"""Of FLUX.2's latents, [B, 128, H/16, W/16]."""
TEXTS = 4
"""Texts kept for a CLIP; one of 512 tokens takes 16 MB of main memory with the 4B model."""
REFERENCES = 16
"""References kept for a VAE; one of a megapixel takes 2 MB."""

_texts: weakref.WeakKeyDictionary[CLIP, Recent[Conditioning]] = weakref.WeakKeyDictionary()
_references: weakref.WeakKeyDictionary[VAE, Recent[Tensor]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Conditions:
    """What a drawing is conditioned on. `negative` is empty where none was asked for; `notes` names what had to
    be left out or changed."""

    positive: Conditioning
    negative: Conditioning
    notes: tuple[str, ...]


def conditions(clip: CLIP, vae: VAE, context: Context, guided: bool) -> Conditions:
    """A context as conditioning, its references on both sides; `guided`: with the empty text as the negative.

    Raises HostError, SettingError for a VAE of another model, ImageError, ContextLimitError."""
    require_klein()
    if vae.latent_channels != CHANNELS:
        raise SettingError(
            f"The VAE makes latents of {vae.latent_channels} channels, FLUX.2 reads {CHANNELS}.",
            "Connect FLUX.2's own VAE, flux2-vae.safetensors.",
        )
    context, left_out = fit(context, partial(count_tokens, clip), LONGEST_TEXT)
    images, notes = references(context)
    if left_out:
        notes.insert(0, f"left out of the text encoder's {LONGEST_TEXT} tokens: {', '.join(left_out)}")
    latents = [encode_reference(vae, image) for image in images]
    positive = _with_references(encode_text(clip, context.text), latents)
    negative = _with_references(encode_text(clip, ""), latents) if guided else []
    return Conditions(positive, negative, tuple(notes))


def count_tokens(clip: CLIP, text: str) -> int:
    """Tokens of a text in the CLIP's template, padding included: never fewer than 512."""
    return max(len(batch) for batches in clip.tokenize(text).values() for batch in batches)


def encode_text(clip: CLIP, text: str) -> Conditioning:
    kept = _texts.setdefault(clip, Recent(TEXTS))
    key = (text, clip.patcher.patches_uuid, clip.layer_idx)
    return kept.get(key, lambda: clip.encode_from_tokens_scheduled(clip.tokenize(text)))


def encode_reference(vae: VAE, image: Image) -> Tensor:
    """[1, 128, H/16, W/16]."""
    image = scaled(image)
    kept = _references.setdefault(vae, Recent(REFERENCES))
    key = (hashlib.sha256(image.tobytes()).digest(), image.size)
    return kept.get(key, lambda: vae.encode(to_tensor([image])))


def _with_references(conditioning: Conditioning, latents: list[Tensor]) -> Conditioning:
    from node_helpers import conditioning_set_values

    if not latents:
        return conditioning
    return conditioning_set_values(conditioning, {"reference_latents": latents}, append=True)
