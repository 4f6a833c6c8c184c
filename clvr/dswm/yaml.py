"""A merge's recipe as a YAML file: the fields of `Recipe` under the command line's names."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from ..errors import MissingFileError, SettingError
from .recipe import Form, Number, Source, Strength

LARGEST = 1 << 16
"""Bytes of a recipe."""


def read(path: Path) -> dict[str, Any]:
    """The settings that a recipe names, by `Recipe`'s fields; besides them `report` and `plot`, paths.

    Paths are relative to the recipe's folder. Raises MissingFileError and SettingError, which name the field."""
    content = _load(path)
    if not isinstance(content, dict):
        raise SettingError(f"{path} holds no fields.", "Write one a line, for example: base: klein-base.safetensors")
    _check_names(str(path), content, _FIELDS)
    found: dict[str, Any] = {}
    for name, value in content.items():
        field, convert = _FIELDS[name]
        found[field] = convert(f"{path}: {name}", value, path.parent)
    if found.get("report") is False:
        found["diagnose"] = False
    if isinstance(found.get("report"), bool):
        del found["report"]
    return found


def _load(path: Path) -> object:
    import yaml

    try:
        if path.stat().st_size > LARGEST:
            raise SettingError(f"{path} is larger than any recipe.", "Name a YAML file, not weights.")
        text = path.read_text("utf-8")
    except OSError as error:
        raise MissingFileError(f"The recipe {path} cannot be read: {error.strerror}.", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise SettingError(f"{path} is no text.", "Name a YAML file in UTF-8.") from error
    # the last three: a tag such as !!bool or !!timestamp before a text that does not fit
    bad = (yaml.YAMLError, RecursionError, ValueError, AttributeError, LookupError)
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        _refuse_twins(path, root)
        return None if root is None else loader.construct_document(root)
    except SettingError:
        raise
    except bad as error:
        where = " ".join(str(error).split()) or "nested too deeply"
        raise SettingError(f"{path} is no valid YAML: {where:.300}.", "See docs/merging.md for an example.") from error
    finally:
        loader.dispose()


def _refuse_twins(path: Path, node: Any) -> None:  # noqa: ANN401
    """YAML's loaders keep the last of two fields with one name; here an increment would be lost in silence."""
    pending, seen = [node], set()
    while pending:
        node = pending.pop()
        if node is None or isinstance(node.value, str) or id(node) in seen:
            continue
        seen.add(id(node))
        pairs = [child for child in node.value if isinstance(child, tuple)]
        names: set[str] = set()
        for key, _ in pairs:
            if isinstance(key.value, str) and key.value in names:
                line = key.start_mark.line + 1
                raise SettingError(f"{path} names {key.value!r:.80} twice, again in line {line}.", "Keep one.")
            names.add(str(key.value))
        pending += [part for pair in pairs for part in pair] or node.value


def _check_names(where: str, given: Mapping[Hashable, object], known: Iterable[str]) -> None:
    known = list(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            remedy = f"Did you mean {near[0]}?" if near else f"There are {', '.join(known)}."
            raise SettingError(f"{where}: there is no field {str(name)!r:.80}.", remedy)


def _path(where: str, value: object, folder: Path) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise SettingError(
            f"{where} is {_shown(value)}, no path.", "Write a path, in quotes if it looks like a number."
        )
    return folder / (Path(value).expanduser() if value.startswith("~/") else Path(value))


def _source(where: str, value: object, folder: Path) -> Source:
    """PATH, PATH:λ, or {path, lambda, blocks}."""
    if not isinstance(value, dict):
        _path(where, value, folder)
        source = Source.parse(str(value))
        return Source(_path(where, str(source.path), folder), source.strength)
    _check_names(where, value, ("path", "lambda", "blocks"))
    if "path" not in value:
        raise SettingError(f"{where} has no path.", "Write path: FILE beside its lambda.")
    strength = _strength(f"{where}.lambda", value.get("lambda", 1.0))
    blocks = value.get("blocks", {})
    if not isinstance(blocks, dict):
        raise SettingError(f"{where}.blocks is {_shown(blocks)}.", "Write groups and numbers: {double: 0.5}")
    numbers = {str(group): _number(f"{where}.blocks.{group}", number) for group, number in blocks.items()}
    return Source(
        _path(f"{where}.path", value["path"], folder), Strength(strength.value, {**strength.blocks, **numbers})
    )


def _sources(where: str, value: object, folder: Path) -> tuple[Source, ...]:
    many = value if isinstance(value, list) else [value]
    return tuple(_source(f"{where}[{i}]" if len(many) > 1 else where, one, folder) for i, one in enumerate(many))


def _strength(where: str, value: object) -> Strength:
    """A number, or the command line's text: 0.8,double=0.5."""
    return Strength.parse(value) if isinstance(value, str) else Strength(_number(where, value))


def _number(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SettingError(f"{where} is {_shown(value)}, no number.", "Write one such as 0.8")
    return float(value)


def _limit(where: str, value: object, folder: Path) -> float:
    number = _number(where, value)
    if not 0 < number < 100:
        raise SettingError(f"{where} is {_shown(value)}, no share.", "Write 0.03 for 3 %.")
    return number


def _whole(where: str, value: object, folder: Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingError(f"{where} is {_shown(value)}, no whole number above 0.", "Write one such as 64")
    return value


def _flag(where: str, value: object, folder: Path) -> bool:
    if not isinstance(value, bool):
        raise SettingError(f"{where} is {_shown(value)}.", "Write true or false.")
    return value


def _report(where: str, value: object, folder: Path) -> Path | bool:
    return value if isinstance(value, bool) else _path(where, value, folder)


def _one_of(choices: tuple[str, ...]) -> Callable[[str, object, Path], str]:
    def convert(where: str, value: object, folder: Path) -> str:
        if value not in choices:
            raise SettingError(f"{where} is {_shown(value)}.", f"Write {', '.join(choices[:-1])} or {choices[-1]}.")
        return str(value)

    return convert


def _shown(value: object) -> str:
    return f"{value!r:.80}" if value is not None else "empty"


_FIELDS: Mapping[str, tuple[str, Callable[[str, object, Path], Any]]] = {
    "base": ("base", _path),
    "distilled": ("distilled", _source),
    "align": ("align", _sources),
    "out": ("out", _path),
    "dtype": ("dtype", _one_of(get_args(Number))),
    "format": ("form", _one_of(get_args(Form))),
    "rank": ("rank", _whole),
    "relative_to": ("relative_to", _one_of(("base", "distilled"))),
    "report": ("report", _report),
    "plot": ("plot", _path),
    "sign_conflict": ("conflicts", _flag),
    "warn_shift": ("warn_shift", _limit),
    "sha256": ("sha256", _flag),
    "overwrite": ("overwrite", _flag),
    "allow_fp8": ("allow_fp8", _flag),
    "allow_nonfinite": ("allow_nonfinite", _flag),
    "threads": ("threads", _whole),
}
"""By the name in the file: the field of `Recipe`, and what makes its value of (where, value, folder)."""
