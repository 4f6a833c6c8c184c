"""Recipes: what is wrong in one is named, and numbers are read as people write them."""

from __future__ import annotations

import dataclasses

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from clvr.errors import FormatError, MissingFileError
from training.config import BuiltinConfig
from training.recipe import FOLDER, load, parse, plain


@dataclasses.dataclass(frozen=True)
class Inner:
    lr: float = 1.0
    steps: int = 2


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str = "a"
    inner: Inner = Inner()
    sides: tuple[int, ...] = ()
    limit: int | None = None


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        (tmp_path / "r.yaml").write_text(text)
        return tmp_path / "r.yaml"

    return write


def test_what_a_recipe_leaves_out_keeps_its_default(recipe):
    assert load(recipe(""), Outer) == Outer()
    assert load(recipe("inner: {steps: 5}\nsides: [1, 2]"), Outer) == Outer(inner=Inner(steps=5), sides=(1, 2))


@pytest.mark.parametrize(("text", "value"), [("2e-5", 2e-5), ("1E+3", 1e3), ("1.5e-4", 1.5e-4), ("3", 3.0)])
def test_numbers_are_read_as_people_write_them(recipe, text, value):
    assert load(recipe(f"inner: {{lr: {text}}}"), Outer).inner.lr == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("inner: {learning_rate: 3}", "inner has unknown fields: learning_rate. Known are lr, steps"),
        ("inner: {steps: 2.5}", "inner.steps should be int"),
        ("inner: {lr: fast}", "inner.lr should be a number"),
        ("sides: [1, b]", r"sides\[1\] should be int"),
        ("name: a\nname: b", "'name' is given twice"),
        ("- 1", "should hold a mapping"),
        ("a: [", "not YAML"),
    ],
)
def test_errors_name_the_file_and_the_field(recipe, text, says):
    with pytest.raises(FormatError, match=says) as caught:
        load(recipe(text), Outer)
    assert "r.yaml" in str(caught.value)
    assert "damaged" not in str(caught.value)


def test_a_recipe_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MissingFileError, match="no recipe"):
        load(tmp_path / "none.yaml", Outer)


def test_the_built_in_models_recipe_loads():
    assert load(FOLDER / "builtin.yaml", BuiltinConfig).optim.samples == 1_000_000


@given(st.builds(Outer, st.text(), st.builds(Inner, st.floats(allow_nan=False), st.integers())))
def test_a_recipe_survives_plain_data_and_yaml(outer):
    assert parse(yaml.safe_load(yaml.safe_dump(plain(outer))), Outer) == outer
