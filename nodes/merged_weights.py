"""A merge of MODELs as patches: each weight is computed when ComfyUI loads it, from the weights of the inputs
where they lie. fp32 throughout, and one rounding to the number format that the distilled weight has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.lora
import comfy.quant_ops
import comfy.utils
import torch
from comfy.weight_adapter.base import WeightAdapterBase

from ..clvr.errors import WeightsError

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from torch import Tensor

PREFIX = "diffusion_model."
PLAIN = (torch.float32, torch.float16, torch.bfloat16)
SHOWN = 3


@dataclass(frozen=True)
class Operand:
    """One weight of an input MODEL: the model that holds it, and the patches that the MODEL had on it."""

    model: ModelPatcher
    key: str
    patches: tuple[Any, ...]

    @property
    def weight(self) -> Tensor:
        """As it was loaded. Asked anew each time: ComfyUI moves weights, and keeps those it has patched aside."""
        if self.key in self.model.backup:
            return self.model.backup[self.key].weight
        if self.key in self.model.hook_backup:
            return self.model.hook_backup[self.key][0]
        return comfy.utils.get_attr(self.model.model, self.key)

    def value(self, device: torch.device) -> Tensor:
        """With its patches, in fp32; in its own dtype, and perhaps in its own memory, where it has none."""
        weight = self.weight.detach().to(device)
        if not self.patches:
            return weight
        merges = [i for i, patch in enumerate(self.patches) if isinstance(patch[1], MergedWeight)]
        rest = list(self.patches[merges[-1] + 1 :] if merges else self.patches)
        merged = self.patches[merges[-1]][1].merge if merges else None
        start = merged.value(device) if merged else weight.to(torch.float32, copy=True)
        originals = {self.key: [(weight, None)]}
        return comfy.lora.calculate_weight(rest, start, self.key, torch.float32, originals)

    def same(self, other: Operand) -> bool:
        """Whether both are one tensor in memory with the same patches, which is seen without reading any."""
        patches = zip(self.patches, other.patches, strict=False)
        alike = len(self.patches) == len(other.patches) and all(one is two for one, two in patches)
        return alike and self.weight.data_ptr() == other.weight.data_ptr() and self.weight.shape == other.weight.shape


@dataclass(frozen=True)
class Merge:
    """θ = base + λ_d (distilled - base) + λ_a (aligned - base) of one weight (CLVR, section 3.4, eq. 6)."""

    base: Operand
    distilled: Operand
    aligned: Operand
    lambda_distilled: float
    lambda_align: float

    @property
    def idle(self) -> bool:
        """Whether θ is the distilled weight as it is."""
        return self.lambda_distilled == 1 and (not self.lambda_align or self.aligned.same(self.base))

    def value(self, device: torch.device) -> Tensor:
        """θ before its rounding: fp32, new memory. A distilled weight that was patched before is fp32 already,
        and stays the start of the sum where it counts whole: so a chain of merges is one sum."""
        base, distilled = self.base.value(device), self.distilled.value(device)
        if self.lambda_distilled == 1 and self.distilled.patches:
            total = distilled
        else:
            total = base.to(torch.float32, copy=True)
            _add(total, distilled, base, self.lambda_distilled)
        del distilled
        if self.lambda_align:
            _add(total, self.aligned.value(device), base, self.lambda_align)
        return total


def _add(total: Tensor, model: Tensor, base: Tensor, strength: float) -> None:
    delta = model.to(torch.float32, copy=True).sub_(base)
    total += delta if strength == 1 else delta.mul_(strength)


class MergedWeight(WeightAdapterBase):
    """The patch. It takes the place of the weight and of all patches before it, which the merge has in fp32.

    `weights`: a tensor for ComfyUI to move, and the merge. ComfyUI of 2026 copies such a patch tensor by tensor
    through a buffer that must not be empty."""

    name = "dswm"

    def __init__(self, loaded_keys: set[str], weights: tuple[Tensor, Merge]) -> None:
        self.loaded_keys = loaded_keys
        self.weights = weights  # type: ignore[assignment]

    @property
    def merge(self) -> Merge:
        return self.weights[1]  # type: ignore[return-value]

    def calculate_weight(
        self,
        weight: Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: tuple[int, int, int] | None,
        function: Callable[[Tensor], Tensor],
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """θ, rounded to the distilled weight's own dtype, as `intermediate_dtype`: fp32 where ComfyUI rounds after
        all patches, the dtype that it computes in where it patches a weight on its way through a layer."""
        rounded = self.merge.value(weight.device).to(self.merge.distilled.weight.dtype)
        return rounded.to(intermediate_dtype)


def merged(
    base: ModelPatcher, distilled: ModelPatcher, aligned: ModelPatcher, lambda_distilled: float, lambda_align: float
) -> ModelPatcher:
    """A clone of the distilled MODEL that merges as it is loaded. Raises WeightsError where the models differ in
    their weights' names or shapes, or hold quantised ones."""
    models = {"base": base, "distilled": distilled, "aligned": aligned}
    shapes = {name: _shapes(name, model) for name, model in models.items()}
    for name in ("base", "aligned"):
        _refuse_difference(name, shapes[name], shapes["distilled"])
    clone, patches, nothing = distilled.clone(), {}, torch.zeros(1)
    for key in shapes["distilled"]:
        held = {name: Operand(model, key, tuple(model.patches.get(key, ()))) for name, model in models.items()}
        merge = Merge(**held, lambda_distilled=lambda_distilled, lambda_align=lambda_align)
        if not merge.idle:
            patches[key] = MergedWeight({key}, (nothing, merge))
            clone.patches.pop(key, None)
    if patches:
        clone.add_patches(patches)
    return clone


def _shapes(name: str, model: ModelPatcher) -> dict[str, tuple[int, ...]]:
    """The weights of a diffusion model. Raises WeightsError where one is quantised, or there is none."""
    found = {}
    for key, weight in model.model.named_parameters():
        if not key.startswith(PREFIX):
            continue
        plain = Operand(model, key, ()).weight
        quantised = isinstance(plain, comfy.quant_ops.QuantizedTensor)
        if quantised or plain.dtype not in PLAIN:
            kind = "a QuantizedTensor" if quantised else str(plain.dtype).removeprefix("torch.")
            raise WeightsError(
                f"The {name} model is quantised ({key.removeprefix(PREFIX)} is {kind}), which loses what is merged.",
                "Load a bf16 file with weight_dtype 'default', or merge the files with DSWM Merge Files.",
            )
        found[key] = tuple(weight.shape)
    if not found:
        raise WeightsError(f"The {name} model has no diffusion model's weights.", "Connect a MODEL of FLUX.2 [klein].")
    return found


def _refuse_difference(
    name: str, shapes: Mapping[str, tuple[int, ...]], distilled: Mapping[str, tuple[int, ...]]
) -> None:
    wrong = [key for key in shapes.keys() & distilled.keys() if shapes[key] != distilled[key]]
    for keys, told in (
        (sorted(distilled.keys() - shapes.keys()), "lacks"),
        (sorted(shapes.keys() - distilled.keys()), "has, and the distilled model lacks,"),
        ([f"{key} {shapes[key]} instead of {distilled[key]}" for key in sorted(wrong)], "differs in"),
    ):
        if keys:
            raise WeightsError(
                f"The {name} model {told} {_listed(keys)}.",
                "Merge models of one architecture: all of them 4B, or all 9B.",
            )


def _listed(keys: Iterable[str]) -> str:
    names = [key.removeprefix(PREFIX) for key in keys]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
