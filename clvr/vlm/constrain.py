"""JSON that fits its schema, token by token, with llguidance where it is installed (the extra `vlm`)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_LOG = logging.getLogger(__name__)
_SPACING: JsonCompileOptions = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As `replies` writes a decision into the history: what the model said is then not read again in the next round."""


@cache
def available() -> bool:
    if find_spec("llguidance") is not None:
        return True
    _LOG.warning(
        "llguidance is not installed: replies of the VLM are checked and asked for again, but not held to "
        "their form. For fewer repairs: pip install llguidance"
    )
    return False


class Grammar:
    """A tokenizer as llguidance sees it; made once a model, since it takes about a second."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, stops: Sequence[int]) -> None:
        """`vocabulary`: logits a step; `stops`: the tokens that end a turn."""
        self._vocabulary = vocabulary
        self._tokenizer = _wrapped(tokenizer, vocabulary, stops)

    def matcher(self, schema: Mapping[str, Any]) -> Matcher | None:
        """None where nothing can enforce this schema."""
        if self._tokenizer is None:
            return None
        from llguidance import LLMatcher

        grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), _SPACING)
        inner = LLMatcher(self._tokenizer, grammar)
        return None if inner.is_error() else Matcher(inner, self._vocabulary)


def _wrapped(tokenizer: PreTrainedTokenizerBase, vocabulary: int, stops: Sequence[int]) -> Any:  # noqa: ANN401
    if not available() or not isinstance(tokenizer, PreTrainedTokenizerFast):
        return None
    import llguidance.hf

    try:
        return llguidance.hf.from_tokenizer(tokenizer, vocabulary, list(stops), slices=[])
    except ValueError as error:
        _LOG.warning("Replies of the VLM are not held to their form: its tokenizer cannot be used (%s)", error)
        return None


class Matcher:
    """How far a reply has got in its grammar."""

    def __init__(self, inner: Any, vocabulary: int) -> None:  # noqa: ANN401
        import llguidance.numpy

        self._inner = inner
        self._bits = llguidance.numpy.allocate_token_bitmask(1, vocabulary)
        self._fill = llguidance.numpy.fill_next_token_bitmask

    def mask(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [V] with -inf for every token that cannot come next."""
        self._fill(self._inner, self._bits)
        words = torch.from_numpy(self._bits[0]).unsqueeze(1) >> torch.arange(32, dtype=torch.int32)
        allowed = (words & 1).bool().flatten()[: len(logits)]
        return logits.masked_fill(~allowed.to(logits.device), float("-inf"))

    def take(self, token: int) -> None:
        self._inner.consume_token(token)

    @property
    def is_done(self) -> bool:
        return self._inner.is_stopped()
