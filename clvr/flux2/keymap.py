"""FLUX.2 DiT keys, diffusers <-> Black Forest Labs' single file (the form that ComfyUI reads): a bijection.

The sizes come from the tensors. BFL fuses q, k, v of the double blocks into row thirds, and stores the two
row halves (shift, scale) of the last modulation in the other order; everything else is a rename.
Reference: https://github.com/black-forest-labs/flux2, diffusers' scripts/convert_flux2_to_diffusers.py."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from ..errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

BFL_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
DIFFUSERS_PREFIXES = ("transformer.", "")
_BLOCK = re.compile(r"(\w+_blocks)\.(0|[1-9]\d{0,3})\.")
_SHOWN = 8


@dataclass(frozen=True)
class Rule:
    """One BFL key and the diffusers keys that it holds, in row order. `#` stands for a block's number."""

    bfl: str
    diffusers: tuple[str, ...]
    swapped: bool = False


def _rules() -> tuple[Rule, ...]:
    double, double_bfl = "transformer_blocks.#", "double_blocks.#"
    single, single_bfl = "single_transformer_blocks.#", "single_blocks.#"
    embed = "time_guidance_embed"
    renames = {
        "img_in.weight": "x_embedder.weight",
        "txt_in.weight": "context_embedder.weight",
        "time_in.in_layer.weight": f"{embed}.timestep_embedder.linear_1.weight",
        "time_in.out_layer.weight": f"{embed}.timestep_embedder.linear_2.weight",
        "guidance_in.in_layer.weight": f"{embed}.guidance_embedder.linear_1.weight",
        "guidance_in.out_layer.weight": f"{embed}.guidance_embedder.linear_2.weight",
        "double_stream_modulation_img.lin.weight": "double_stream_modulation_img.linear.weight",
        "double_stream_modulation_txt.lin.weight": "double_stream_modulation_txt.linear.weight",
        "single_stream_modulation.lin.weight": "single_stream_modulation.linear.weight",
        f"{double_bfl}.img_attn.proj.weight": f"{double}.attn.to_out.0.weight",
        f"{double_bfl}.txt_attn.proj.weight": f"{double}.attn.to_add_out.weight",
        f"{double_bfl}.img_attn.norm.query_norm.scale": f"{double}.attn.norm_q.weight",
        f"{double_bfl}.img_attn.norm.key_norm.scale": f"{double}.attn.norm_k.weight",
        f"{double_bfl}.txt_attn.norm.query_norm.scale": f"{double}.attn.norm_added_q.weight",
        f"{double_bfl}.txt_attn.norm.key_norm.scale": f"{double}.attn.norm_added_k.weight",
        f"{double_bfl}.img_mlp.0.weight": f"{double}.ff.linear_in.weight",
        f"{double_bfl}.img_mlp.2.weight": f"{double}.ff.linear_out.weight",
        f"{double_bfl}.txt_mlp.0.weight": f"{double}.ff_context.linear_in.weight",
        f"{double_bfl}.txt_mlp.2.weight": f"{double}.ff_context.linear_out.weight",
        f"{single_bfl}.linear1.weight": f"{single}.attn.to_qkv_mlp_proj.weight",
        f"{single_bfl}.linear2.weight": f"{single}.attn.to_out.weight",
        f"{single_bfl}.norm.query_norm.scale": f"{single}.attn.norm_q.weight",
        f"{single_bfl}.norm.key_norm.scale": f"{single}.attn.norm_k.weight",
        "final_layer.linear.weight": "proj_out.weight",
    }
    image, text = (f"to_{c}" for c in "qkv"), (f"add_{c}_proj" for c in "qkv")
    return (
        *(Rule(bfl, (diffusers,)) for bfl, diffusers in renames.items()),
        Rule(f"{double_bfl}.img_attn.qkv.weight", tuple(f"{double}.attn.{n}.weight" for n in image)),
        Rule(f"{double_bfl}.txt_attn.qkv.weight", tuple(f"{double}.attn.{n}.weight" for n in text)),
        Rule("final_layer.adaLN_modulation.1.weight", ("norm_out.linear.weight",), swapped=True),
    )


RULES = _rules()
_BY_BFL = {rule.bfl: rule for rule in RULES}
_BY_DIFFUSERS = {key: (rule, i) for rule in RULES for i, key in enumerate(rule.diffusers)}


def layout(keys: Iterable[str]) -> Literal["bfl", "diffusers"]:
    """Which of the two forms the keys are in. Raises WeightsError for neither."""
    for key in keys:
        if _strip(key, BFL_PREFIXES).startswith(("img_in.", "double_blocks.", "single_blocks.")):
            return "bfl"
        if _strip(key, DIFFUSERS_PREFIXES).startswith(("x_embedder.", "single_transformer_blocks.")):
            return "diffusers"
    raise WeightsError("The tensors are not those of a FLUX.2 transformer.", "Name FLUX.2 [klein]'s own file.")


def to_bfl(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """diffusers -> BFL, without prefix. Raises WeightsError naming each key that has no place."""
    parts: dict[str, dict[int, Tensor]] = {}
    rules: dict[str, Rule] = {}
    unknown: list[str] = []
    for key, tensor in state_dict.items():
        template, number = _split(_strip(key, DIFFUSERS_PREFIXES))
        rule, place = _BY_DIFFUSERS.get(template, (None, 0))
        name = rule.bfl.replace("#", number) if rule else ""
        if rule is None or place in parts.get(name, {}):
            unknown.append(key)
            continue
        parts.setdefault(name, {})[place] = tensor
        rules[name] = rule
    _refuse_unknown(unknown)
    return {name: _join(name, rules[name], tensors) for name, tensors in parts.items()}


def to_diffusers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BFL or ComfyUI -> diffusers, without prefix. Raises WeightsError naming each key that has no place."""
    out: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, tensor in state_dict.items():
        template, number = _split(_strip(key, BFL_PREFIXES))
        rule = _BY_BFL.get(template) or _BY_BFL.get(re.sub(r"(_norm)\.weight$", r"\1.scale", template))
        names = [name.replace("#", number) for name in rule.diffusers] if rule else []
        if rule is None or names[0] in out:
            unknown.append(key)
            continue
        out.update(zip(names, _cut(key, rule, tensor), strict=True))
    _refuse_unknown(unknown)
    return out


def _strip(key: str, prefixes: tuple[str, ...]) -> str:
    return key.removeprefix(next(p for p in prefixes if key.startswith(p)))


def _split(key: str) -> tuple[str, str]:
    """A key as its template and the number of its block, '' outside of blocks."""
    block = _BLOCK.match(key)
    return (f"{block[1]}.#.{key[block.end() :]}", block[2]) if block else (key, "")


def _join(name: str, rule: Rule, tensors: dict[int, Tensor]) -> Tensor:
    missing = [key for i, key in enumerate(rule.diffusers) if i not in tensors]
    if missing:
        raise WeightsError(
            f"{name} cannot be made without {', '.join(missing)} of the same block.",
            "The file is not complete.",
        )
    if len(tensors) == 1:
        return _swap(name, tensors[0]) if rule.swapped else tensors[0]
    rows = [tensors[i] for i in sorted(tensors)]
    if any(t.shape != rows[0].shape or t.dtype != rows[0].dtype for t in rows):
        shapes = ", ".join(str(tuple(t.shape)) for t in rows)
        raise WeightsError(f"q, k and v of {name} differ in shape or type: {shapes}.", "The file is damaged.")
    return torch.cat(rows)


def _cut(key: str, rule: Rule, tensor: Tensor) -> list[Tensor]:
    if rule.swapped:
        return [_swap(key, tensor)]
    count = len(rule.diffusers)
    if count > 1 and (tensor.ndim == 0 or tensor.shape[0] % count):
        raise WeightsError(
            f"{key} has the shape {tuple(tensor.shape)}, not {count} blocks of rows.", "The file is damaged."
        )
    return list(tensor.chunk(count)) if count > 1 else [tensor]


def _swap(key: str, tensor: Tensor) -> Tensor:
    """(shift, scale) <-> (scale, shift)."""
    if tensor.ndim == 0 or tensor.shape[0] % 2:
        raise WeightsError(
            f"{key} has the shape {tuple(tensor.shape)}, not two halves of rows.", "The file is damaged."
        )
    return torch.cat(tensor.chunk(2)[::-1])


def _refuse_unknown(keys: list[str]) -> None:
    if keys:
        more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
        raise WeightsError(
            f"FLUX.2's transformer has no place for {', '.join(keys[:_SHOWN])}{more}.",
            "Name an unquantised FLUX.2 [klein] transformer in one of its two forms.",
        )
