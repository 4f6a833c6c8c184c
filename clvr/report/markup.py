"""HTML that escapes by default: text becomes markup only by passing through `el`."""

from __future__ import annotations

import html
import re

_VOID = frozenset({"br", "img", "input"})
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*")


class Markup(str):
    """Text that is already HTML. Every other string is escaped when it is placed."""


Child = str | int | None
Attribute = str | int | float | bool | None

NOTHING = Markup("")


def join(*children: Child) -> Markup:
    """Children one after the other; None is nothing."""
    return Markup("".join(c if isinstance(c, Markup) else html.escape(str(c)) for c in children if c is not None))


def el(name: str, /, *children: Child, **attributes: Attribute) -> Markup:
    """One element. `class_` is class, `data_x` is data-x; None and False leave an attribute out, True is
    bare. Raises ValueError for an attribute name that is none."""
    written = "".join(_attribute(k, v) for k, v in attributes.items() if v is not None and v is not False)
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def _attribute(key: str, value: Attribute) -> str:
    key = key.rstrip("_").replace("_", "-")
    if not _NAME.fullmatch(key):
        raise ValueError(f"{key!r} is no attribute name.")
    return f" {key}" if value is True else f' {key}="{html.escape(str(value))}"'
