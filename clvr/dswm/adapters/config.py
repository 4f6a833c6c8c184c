"""alpha and rank as PEFT writes them: adapter_config.json, or diffusers' copy of it in a file's header."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import WeightsError
from ...hub import read_json

METADATA = "lora_adapter_metadata"
PREFIX = "transformer."
LARGEST = 1 << 20
"""Bytes of adapter_config.json."""
DAMAGED = "The file is damaged: save the LoRA again."
MERGED = "Merge the LoRA with PEFT's merge_and_unload, and give the merged model as a checkpoint."

_LONGEST_PATTERN = 512
_MOST_PATTERNS = 4096
_MOST_WAYS = 1 << 18
"""Ways in which all patterns together may be tried against one name: this bounds the time of matching."""
_REFUSED = {
    "use_dora": "DoRA, which depends on the weight that it normalises",
    "fan_in_fan_out": "transposed weights, which FLUX.2 does not have",
    "lora_bias": "biases, which FLUX.2 does not have",
    "modules_to_save": "whole modules beside the LoRA",
    "layer_replication": "a model with repeated layers",
    "target_parameters": "a LoRA of parameters outside of modules",
    "trainable_token_indices": "trained token embeddings",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "alora_invocation_tokens": "activated LoRA, which acts on some tokens only",
    "arrow_config": "arrow routing",
    "kasa_config": "KaSA, which changes the base weights too",
    "monteclora_config": "sampled LoRA weights",
}
_STARTS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
"""Ways to begin a training (`init_lora_weights`) that leave the base weights as they are."""


@dataclass(frozen=True)
class Scaling:
    """alpha / rank, or alpha / √rank for rsLoRA (https://arxiv.org/abs/2312.03732), by module.

    where: names the config in errors. ranks, alphas: patterns of module names, the first that matches counts."""

    where: str
    rank: int
    alpha: float
    rslora: bool
    ranks: tuple[tuple[re.Pattern[str], int], ...]
    alphas: tuple[tuple[re.Pattern[str], float], ...]

    def of(self, module: str, rank: int) -> float:
        """Raises WeightsError where the module's true rank is not the one that the config tells."""
        told = _first(self.ranks, module, self.rank)
        if told != rank:
            raise WeightsError(
                f"{self.where} tells a rank of {told} for {module}, whose factors have rank {rank}.",
                "The config belongs to another LoRA: save both again.",
            )
        return _first(self.alphas, module, self.alpha) / (math.sqrt(rank) if self.rslora else rank)


def from_folder(path: Path) -> Scaling:
    """Raises WeightsError for a damaged config, and for what cannot be merged, by its name."""
    if path.stat().st_size > LARGEST:
        raise WeightsError(f"{path} has more than {LARGEST >> 10} KB.", DAMAGED)
    config = read_json(path)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise WeightsError(
            f"{path} describes an adapter of type {kind!r:.60}.",
            "PEFT's LORA can be merged, and LoKr and LoHa as LyCORIS saves them. " + MERGED,
        )
    return _scaling(str(path), config)


def from_header(path: Path, metadata: Mapping[str, str]) -> Scaling | None:
    """diffusers' `lora_adapter_metadata`: PEFT's config as JSON, each name behind its model's. None where the
    file has none. Raises WeightsError."""
    text = metadata.get(METADATA)
    if text is None:
        return None
    where = f"{METADATA} in the header of {path}"
    try:
        config = json.loads(text) if len(text) <= LARGEST else None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise WeightsError(f"The {where} is no JSON object of at most {LARGEST >> 10} KB.", DAMAGED)
    own = {key.removeprefix(PREFIX): value for key, value in config.items() if key.startswith(PREFIX)}
    return _scaling(f"The {where}", own or config) if own or "r" in config else None


def _scaling(where: str, config: Mapping[str, Any]) -> Scaling:
    _refuse(where, config)
    rslora = config.get("use_rslora") or False
    if not isinstance(rslora, bool):
        raise WeightsError(f"{where} gives {rslora!r:.60} as use_rslora, which is true or false.", DAMAGED)
    return Scaling(
        where,
        _rank(where, "r", config.get("r", 8)),
        _alpha(where, "lora_alpha", config.get("lora_alpha", 8)),
        rslora,
        tuple((p, _rank(where, "rank_pattern", value)) for p, value in _patterns(where, config, "rank_pattern")),
        tuple((p, _alpha(where, "alpha_pattern", value)) for p, value in _patterns(where, config, "alpha_pattern")),
    )


def _refuse(where: str, config: Mapping[str, Any]) -> None:
    for name, what in _REFUSED.items():
        if config.get(name):
            raise WeightsError(f"{where} sets {name}: {what}.", MERGED)
    if config.get("bias", "none") not in ("none", None):
        raise WeightsError(f"{where} trains biases ({config['bias']!r:.60}), which FLUX.2 does not have.", MERGED)
    start = config.get("init_lora_weights")
    if start not in _STARTS:
        raise WeightsError(f"{where} began with {start!r:.60}, which changes the base weights too.", MERGED)


def _rank(where: str, name: str, value: Any) -> int:  # noqa: ANN401
    if type(value) is not int or value < 1:
        raise WeightsError(f"{where} gives {value!r:.60} as {name}, no positive whole number.", DAMAGED)
    return value


def _alpha(where: str, name: str, value: Any) -> float:  # noqa: ANN401
    if type(value) not in (int, float) or not abs(value) < 1e30:
        raise WeightsError(f"{where} gives {value!r:.60} as {name}, no finite number.", DAMAGED)
    return float(value)


def _patterns(where: str, config: Mapping[str, Any], name: str) -> list[tuple[re.Pattern[str], Any]]:
    """Each pattern matches the whole of a module's name, or its end after a dot, as in PEFT."""
    given = config.get(name) or {}
    if not isinstance(given, dict) or len(given) > _MOST_PATTERNS:
        raise WeightsError(f"{where} has no map of at most {_MOST_PATTERNS} patterns as {name}.", DAMAGED)
    if sum(_ways(where, pattern) for pattern in given) > _MOST_WAYS:
        raise WeightsError(
            f"{where} has patterns in {name} that take too long to match.",
            "Write the modules' names out, or use at most two of * and + in a pattern.",
        )
    try:
        return [(re.compile(rf"(.*\.)?({pattern})$"), value) for pattern, value in given.items()]
    except (re.error, OverflowError, RecursionError) as error:
        raise WeightsError(
            f"{where} has a pattern in {name} that is no regular expression: {error}.", DAMAGED
        ) from error


def _ways(where: str, pattern: str) -> int:
    """An upper bound of the ways to try a pattern against a name of up to 64 letters."""
    if len(pattern) > _LONGEST_PATTERN or re.search(r"\)[*+?{]", pattern):
        raise WeightsError(
            f"{where} has the pattern {pattern!r:.80}, which is too long or repeats a group: it may never end.",
            "Write the modules' names out.",
        )
    repeats = sum(pattern.count(sign) for sign in "*+{")
    choices = sum(pattern.count(sign) for sign in "|?")
    return 64 ** min(repeats, 9) * 2 ** min(choices, 60)


def _first(patterns: tuple[tuple[re.Pattern[str], Any], ...], module: str, otherwise: Any) -> Any:  # noqa: ANN401
    return next((value for pattern, value in patterns if pattern.match(module)), otherwise)
