"""The nodes' texts in three languages: nothing is missing, nothing is left over, and ComfyUI serves them."""

from __future__ import annotations

import json

import pytest

from scripts import locales

pytestmark = [pytest.mark.comfy, pytest.mark.xdist_group("comfy")]
TRANSLATED = [language for language in locales.LANGUAGES if language != locales.SOURCE]
SYNTAX = set("{}@|")
"""What the frontend's message format gives a meaning of its own."""


@pytest.fixture
def info(client):
    return client.get("object_info")


def kept(language: str, name: str = "nodeDefs") -> dict:
    return json.loads(locales.path_of(language, name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("language", locales.LANGUAGES)
def test_the_files_are_what_the_schemas_and_the_phrase_books_give(info, language):
    for name, found in locales.files(info, language).items():
        assert kept(language, name) == found, "run: python -m scripts.locales"


@pytest.mark.parametrize("language", TRANSLATED)
def test_a_phrase_book_has_every_text_and_no_other(info, language):
    assert set(locales.phrases(language)) == set(locales.texts(info))


@pytest.mark.parametrize("language", locales.LANGUAGES)
def test_every_node_input_and_output_is_named(info, language):
    found = kept(language)
    assert set(found) == {name for name in info if name.startswith("CLVR")}
    for name, node in found.items():
        inputs = [key for group in ("required", "optional") for key in info[name]["input"].get(group, {})]
        assert list(node.get("inputs", {})) == inputs
        assert len(node["outputs"]) == len(info[name]["output"])


@pytest.mark.parametrize("language", TRANSLATED)
def test_no_text_would_be_read_as_the_frontend_s_message_syntax(language):
    assert not [text for text in locales.phrases(language).values() if SYNTAX & set(text)]


def test_comfyui_serves_them(client):
    served = client.get("i18n")
    for language in locales.LANGUAGES:
        assert served[language]["nodeDefs"].items() >= kept(language).items()
        assert served[language]["nodeCategories"].items() >= kept(language, "main")["nodeCategories"].items()


def test_the_english_text_does_not_hide_that_this_comfyui_is_too_old():
    assert not [node for node in locales.HOSTED if "description" in kept("en")[node]]
