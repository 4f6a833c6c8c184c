"""LoRA, LoKr and LoHa files of every naming, as increments for the merge: ΔW = B·A·scale by pieces and rows.

The scale is alpha / rank by the file's own alpha, else by PEFT's config, else by the config in diffusers'
header, else 1. LoKr and LoHa are scaled as ComfyUI does."""

from __future__ import annotations

from .opening import Adapter, Update, is_adapter, open_adapter

__all__ = ["Adapter", "Update", "is_adapter", "open_adapter"]
