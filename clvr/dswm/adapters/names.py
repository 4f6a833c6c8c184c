"""Names in adapter files: which tensor of the model a key changes, and which part of the change it holds.

No name is guessed. A table is made from the model's own modules, in both layouts, dotted and underscored."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ...errors import WeightsError
from ...flux2.keymap import Layout, key_of, pieces

LAYOUTS: tuple[Layout, ...] = ("bfl", "diffusers")
_LONGEST = 512
_SHOWN = 8
_COMPARED = 64

_ENDING = r"(?:(?:\.[^.]+)?\.weight)?"  # PEFT puts the adapter's name before .weight
_PARTS = {
    "down": rf"\.lora_A{_ENDING}|\.lora_down\.weight|[._]lora\.down\.weight|\.lora_linear_layer\.down\.weight",
    "up": rf"\.lora_B{_ENDING}|\.lora_up\.weight|[._]lora\.up\.weight|\.lora_linear_layer\.up\.weight",
    "alpha": r"\.alpha",
    "diff": r"\.diff|\.w_norm",
    **{name: rf"\.{name}" for name in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")},
    **{name: rf"\.{name}" for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")},
}
_BAKE = "Apply it in ComfyUI or PEFT, save the whole model, and give that as a checkpoint."
_TRAIN = "Train or export the LoRA without it."
_REFUSED = {
    "DoRA, which depends on the weight that it normalises": (
        r"\.dora_scale|\.lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?",
        _BAKE,
    ),
    "a bias, and FLUX.2 has none": (r"\.diff_b|\.b_norm|\.bias|\.lora_[AB](?:\.[^.]+)?\.bias", _TRAIN),
    "a convolution's or Tucker form, and FLUX.2 has no convolution": (
        r"\.lora_mid\.weight|\.lokr_t2|\.hada_t[12]",
        _TRAIN,
    ),
    "OFT or BOFT, which turns the weights instead of adding to them": (
        r"\.(?:oft|boft)_\w+(?:\.[^.]+)?(?:\.weight)?|\.rescale",
        _BAKE,
    ),
    "GLoRA, which depends on the weights that it changes": (r"\.[ab][12]\.weight", _BAKE),
    "a weight to set, not to add": (r"\.set_weight", _BAKE),
    "a change of the model's shape": (r"\.reshape_weight", "Use a LoRA for the plain FLUX.2 [klein]."),
    "a learned factor of the LoRA that no loader but LyCORIS applies": (r"\.scalar", "Export the LoRA with LyCORIS."),
}
_PART = re.compile("(?:" + "|".join(f"(?P<{name}>{regex})" for name, regex in _PARTS.items()) + ")$")
_KINDS = tuple(_REFUSED)
_REFUSED_PART = re.compile(
    "(?:" + "|".join(f"(?P<r{i}>{regex})" for i, (regex, _) in enumerate(_REFUSED.values())) + ")$"
)
_WHOLE = re.compile(r"\.(?:bias|weight)$")

_WRAPPED = re.compile(r"(base_model\.model\.)?(?:model\.)?(diffusion_model\.|transformer\.)?")
_UNDERSCORED = {"lora_unet_": "kohya", "lora_transformer_": "onetrainer", "lycoris_": "lycoris"}
_TEXT = re.compile(r"(?:base_model\.model\.)?(?:lora_te\d?_|lora_prior_te_|text_encoders?(?:_\d)?\.|te\d?\.)")
_NUMBER = re.compile(r"(blocks[._])(\d{1,4})(?=[._])")


@dataclass(frozen=True)
class Target:
    """One tensor of the model in one layout: its pieces from its first rows to its last, and its shape.

    The same module in both layouts is one target, unless the layouts keep its rows in another order."""

    pieces: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """What one key holds: 'down', 'up', 'alpha', 'diff', 'lokr_w1' … of the module that it names.

    naming: who writes such names: peft, comfyui, kohya … module: the key's name for it without the prefix of
    its naming; what PEFT's patterns are matched against."""

    naming: str
    module: str
    name: str
    target: Target


class Names:
    """The names of one model's modules."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.dotted: dict[str, Target] = {}
        self.layouts: dict[str, Layout] = {}
        for layout in LAYOUTS:
            for key in dict.fromkeys(key_of(piece, layout) for piece in shapes):
                target = _target(pieces(key, layout) or (), shapes)
                if target is not None:
                    names = {key.rpartition(".")[0], key.removesuffix(".weight")}
                    self.dotted |= dict.fromkeys(names, target)
                    self.layouts |= dict.fromkeys(names, layout)
        self.underscored = {name.replace(".", "_"): target for name, target in self.dotted.items()}
        self.blocks = _count(self.dotted)

    def part(self, key: str) -> Part | None:
        """None for a key that names no module of this model."""
        if len(key) > _LONGEST or (found := _PART.search(key)) is None or found.lastgroup is None:
            return None
        naming, module, target = self._module(key[: found.start()])
        return Part(naming, module, found.lastgroup, target) if target else None

    def explain(self, path: object, unknown: Iterable[str]) -> WeightsError:
        """Why the keys, which `part` does not know, cannot be used."""
        keys = list(unknown)
        readable = [key for key in keys if len(key) <= _LONGEST]
        for explain in (self._text_encoder, self._refused, self._depth, self._whole):
            error = next((found for key in readable if (found := explain(path, key))), None)
            if error is not None:
                return error
        shown = "; ".join(f"{key!r:.160}{self._suggestion(key)}" for key in keys[:_SHOWN])
        more = f"; and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
        return WeightsError(
            f"{path} has keys without a place in this model: {shown}{more}.",
            "Use a LoRA that was trained for this FLUX.2 [klein]; nothing is left out in silence.",
        )

    def _module(self, name: str) -> tuple[str, str, Target | None]:
        for prefix, naming in _UNDERSCORED.items():
            if name.startswith(prefix):
                module = name.removeprefix(prefix)
                return naming, module, self.underscored.get(module)
        wrapped = _WRAPPED.match(name)
        if wrapped is None:
            return "", name, None
        module = name[wrapped.end() :]
        if wrapped[1]:
            return "peft", name[wrapped.end(1) :], self.dotted.get(module)
        naming = {"diffusion_model.": "comfyui", "transformer.": "diffusers"}.get(wrapped[2] or "")
        return naming or self.layouts.get(module, ""), module, self.dotted.get(module)

    def _text_encoder(self, path: object, key: str) -> WeightsError | None:
        if not _TEXT.match(key):
            return None
        return WeightsError(
            f"{path} changes the text encoder too: {key!r:.160}. Only the transformer is merged.",
            "Save the LoRA's transformer part alone and merge that; "
            "the text encoder's part can still be loaded when drawing, with ComfyUI's Load LoRA.",
        )

    def _refused(self, path: object, key: str) -> WeightsError | None:
        found = _REFUSED_PART.search(key)
        if found is None or found.lastgroup is None:
            return None
        kind = _KINDS[int(found.lastgroup[1:])]
        return WeightsError(f"{path} holds {kind}: {key!r:.160}.", _REFUSED[kind][1])

    def _depth(self, path: object, key: str) -> WeightsError | None:
        """A block that a deeper model has."""
        found, part = _NUMBER.search(key), _PART.search(key)
        if found is None or part is None:
            return None
        first = _NUMBER.sub(r"\g<1>0", key[: part.start()], count=1)
        if self._module(first)[2] is None:
            return None
        double, single = self.blocks
        return WeightsError(
            f"{path} is for a deeper model: it changes block {found[2]} ({key!r:.160}), "
            f"and this model has {double} double and {single} single blocks.",
            "Use a LoRA that was trained for this model: klein 4B has 5 and 20 blocks, klein 9B 8 and 24.",
        )

    def _whole(self, path: object, key: str) -> WeightsError | None:
        found = _WHOLE.search(key)
        if found is None or self._module(key[: found.start()])[2] is None:
            return None
        return WeightsError(
            f"{path} holds a whole tensor beside its LoRA: {key!r:.160}.",
            "Merge the LoRA with PEFT's merge_and_unload, and give the merged model as a checkpoint.",
        )

    def _suggestion(self, key: str) -> str:
        part = _PART.search(key[:_LONGEST])
        name = key[: part.start() if part else _LONGEST]
        prefix = next((p for p in _UNDERSCORED if name.startswith(p)), "")
        wrapped = _WRAPPED.match(name)
        module = name.removeprefix(prefix) if prefix or wrapped is None else name[wrapped.end() :]
        known = self.underscored if prefix else self.dotted
        near = difflib.get_close_matches(module[:_COMPARED], known, n=1, cutoff=0)
        return f" (the nearest module is {near[0]!r})" if near else ""


def is_part(key: str) -> bool:
    """Whether a key is written as adapters are, of a form that is read here or refused by its name."""
    if len(key) > _LONGEST or key.endswith(".bias"):
        return False
    return any(form.search(key) for form in (_PART, _REFUSED_PART)) or _TEXT.match(key) is not None


def _target(names: tuple[str, ...], shapes: Mapping[str, tuple[int, ...]]) -> Target | None:
    if not names or any(name not in shapes for name in names):
        return None
    first = shapes[names[0]]
    return Target(names, (sum(shapes[name][0] for name in names), *first[1:]))


def _count(names: Iterable[str]) -> tuple[int, int]:
    """Double and single blocks."""
    listed = list(names)
    double, single = (
        {found[1] for name in listed if (found := re.match(rf"{kind}_blocks\.(\d+)\.", name))}
        for kind in ("double", "single")
    )
    return len(double), len(single)
