"""FLUX.2 DiT keys, diffusers <-> Black Forest Labs' single file (the form that ComfyUI reads): a bijection.

The sizes come from the tensors. BFL fuses q, k, v of the double blocks into row thirds, and stores the two
row halves (shift, scale) of the last modulation in the other order; everything else is a rename. So there are
*pieces*, the largest runs of rows that both layouts keep together, and every tensor of either layout is a
number of equal pieces one above the other.
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

Layout = Literal["bfl", "diffusers"]

BFL_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
DIFFUSERS_PREFIXES = ("transformer.", "")
PREFIXES: Mapping[Layout, tuple[str, ...]] = {"bfl": BFL_PREFIXES, "diffusers": DIFFUSERS_PREFIXES}
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


def layout(keys: Iterable[str]) -> Layout:
    """Which of the two forms the keys are in. Raises WeightsError for neither."""
    for key in keys:
        if _strip(key, BFL_PREFIXES).startswith(("img_in.", "double_blocks.", "single_blocks.")):
            return "bfl"
        if _strip(key, DIFFUSERS_PREFIXES).startswith(("x_embedder.", "single_transformer_blocks.")):
            return "diffusers"
    raise WeightsError("The tensors are not those of a FLUX.2 transformer.", "Name FLUX.2 [klein]'s own file.")


def pieces(key: str, form: Layout) -> tuple[str, ...] | None:
    """The pieces that lie in a tensor, from its first rows to its last; None for a key without a place.

    A piece is named by its BFL key and its place there: 'double_blocks.0.img_attn.qkv.weight:1' is the key
    projection. With or without a prefix; a norm's weight may end in .scale or .weight."""
    template, number = _split(_strip(key, PREFIXES[form]))
    if form == "diffusers":
        rule, place = _BY_DIFFUSERS.get(template, (None, 0))
    else:
        rule, place = _BY_BFL.get(template) or _BY_BFL.get(re.sub(r"(_norm)\.weight$", r"\1.scale", template)), 0
    if rule is None:
        return None
    name = rule.bfl.replace("#", number)
    if rule.swapped:
        return (f"{name}:1", f"{name}:0") if form == "diffusers" else (f"{name}:0", f"{name}:1")
    if form == "diffusers":
        return (f"{name}:{place}",)
    return tuple(f"{name}:{i}" for i in range(len(rule.diffusers)))


def key_of(piece: str, form: Layout) -> str:
    """The tensor of a layout, without prefix, that holds a piece."""
    name, place = piece.rsplit(":", 1)
    if form == "bfl":
        return name
    template, number = _split(name)
    rule = _BY_BFL[template]
    return rule.diffusers[0 if rule.swapped else int(place)].replace("#", number)


def to_bfl(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """diffusers -> BFL, without prefix. Raises WeightsError naming each key that has no place."""
    return _convert(state_dict, "diffusers", "bfl")


def to_diffusers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BFL or ComfyUI -> diffusers, without prefix. Raises WeightsError naming each key that has no place."""
    return _convert(state_dict, "bfl", "diffusers")


def refuse_unknown(keys: list[str]) -> None:
    """Raises WeightsError where there are any."""
    if keys:
        more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
        raise WeightsError(
            f"FLUX.2's transformer has no place for {', '.join(keys[:_SHOWN])}{more}.",
            "Name an unquantised FLUX.2 [klein] transformer in one of its two forms.",
        )


def _convert(state_dict: Mapping[str, Tensor], form: Layout, wanted: Layout) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, tensor in state_dict.items():
        names = pieces(key, form)
        if names is None or names[0] in found:
            unknown.append(key)
        else:
            found.update(zip(names, _cut(key, tensor, len(names)), strict=True))
    refuse_unknown(unknown)
    return {key: _join(key, found, wanted) for key in dict.fromkeys(key_of(piece, wanted) for piece in found)}


def _strip(key: str, prefixes: tuple[str, ...]) -> str:
    return key.removeprefix(next(p for p in prefixes if key.startswith(p)))


def _split(key: str) -> tuple[str, str]:
    """A key as its template and the number of its block, '' outside of blocks."""
    block = _BLOCK.match(key)
    return (f"{block[1]}.#.{key[block.end() :]}", block[2]) if block else (key, "")


def _join(key: str, found: Mapping[str, Tensor], form: Layout) -> Tensor:
    names = pieces(key, form) or ()
    missing = [key_of(name, "diffusers") for name in names if name not in found]
    if missing:
        raise WeightsError(
            f"{key} cannot be made without {', '.join(missing)} of the same block.",
            "The file is not complete.",
        )
    rows = [found[name] for name in names]
    if any(t.shape != rows[0].shape or t.dtype != rows[0].dtype for t in rows):
        shapes = ", ".join(str(tuple(t.shape)) for t in rows)
        raise WeightsError(f"q, k and v of {key} differ in shape or type: {shapes}.", "The file is damaged.")
    return torch.cat(rows) if len(rows) > 1 else rows[0]


def _cut(key: str, tensor: Tensor, count: int) -> tuple[Tensor, ...]:
    if count == 1:
        return (tensor,)
    check_rows(key, tuple(tensor.shape), count)
    return tensor.chunk(count)


def check_rows(key: str, shape: tuple[int, ...], count: int) -> None:
    """Raises WeightsError where the rows cannot be cut into `count` equal pieces."""
    if count > 1 and (not shape or shape[0] % count):
        wanted = "two halves" if count == 2 else f"{count} blocks"
        raise WeightsError(f"{key} has the shape {shape}, not {wanted} of rows.", "The file is damaged.")
