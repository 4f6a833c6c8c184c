"""Recipes: a YAML file becomes the typed dataclass of the trainer that it is for."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml

from clvr.errors import FormatError, MissingFileError
from clvr.trajectory import decode

T = TypeVar("T")
FOLDER = Path(__file__).parent / "recipes"


class _Loader(yaml.SafeLoader):
    """YAML in which 2e-5 is a number, as everyone writes it, and a field that is given twice an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} is given twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


def load(path: Path, kind: type[T]) -> T:
    """The recipe as a `kind`; fields that it leaves out keep their defaults.

    Raises MissingFileError; FormatError naming the file and the field that is unknown, mistyped or missing;
    SettingError where the dataclass refuses a value."""
    if not path.is_file():
        raise MissingFileError(f"There is no recipe {path}.", f"Recipes lie in {FOLDER}.")
    try:
        data = yaml.load(path.read_text("utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} is not YAML: {error}.", "See the recipes in training/recipes/.") from error
    if data is not None and not isinstance(data, dict):
        raise FormatError(f"{path} should hold a mapping of fields.", "See the recipes in training/recipes/.")
    return parse(data or {}, kind, str(path))


def parse(data: dict[str, Any], kind: type[T], name: str = "The recipe") -> T:
    """Plain data as a `kind`. Raises FormatError and SettingError as `load` does."""
    try:
        return decode(kind, data)
    except FormatError as error:
        known = error.remedy if error.remedy.startswith("Known") else ""
        where = f"Every field is explained in {kind.__module__}: {kind.__name__}."
        raise FormatError(f"{name}: {error.thing}", f"{known} {where}".strip()) from error


def plain(config: Any) -> dict[str, Any]:  # noqa: ANN401
    """A recipe as plain data; `parse` reads it back."""
    return dataclasses.asdict(config)
