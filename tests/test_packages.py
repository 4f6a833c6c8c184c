"""What is said where another pack has put an older package in the place of ours."""

from __future__ import annotations

import re
import sys
from importlib import metadata

import pytest

from clvr import packages
from clvr.errors import PackageError
from clvr.models import Choice, load_client, load_generator
from scripts.comfy import ROOT


@pytest.fixture
def installed(monkeypatch):
    """What is installed, as a dictionary to change; the rest is as it is."""
    changed: dict[str, str | None] = {}
    real = metadata.version

    def version(name):
        found = changed[name] if name in changed else real(name)
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)
    return changed


def test_what_is_installed_here_is_enough():
    packages.require(*packages.OLDEST)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ("0.41.3", "diffusers 0.41.3 is too old: 0.42 or newer is needed"),
        ("0.42.0", ""),
        ("0.42.0.dev0+cu130", ""),
        ("1.0rc1", ""),
        (None, "diffusers is not installed"),
    ],
)
def test_an_old_or_absent_package_is_named_with_the_command_that_mends_it(installed, found, said):
    installed["diffusers"] = found
    if not said:
        packages.require("diffusers")
        return
    with pytest.raises(PackageError, match=re.escape(said)) as caught:
        packages.require("torch", "diffusers")
    assert str(caught.value).endswith(f'{sys.executable} -m pip install "diffusers>=0.42"')


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("diffusers", lambda: load_generator(Choice())),
        ("transformers", lambda: load_generator(Choice())),
        ("transformers", lambda: load_client(Choice(vlm="transformers:nowhere"))),
        ("httpx", lambda: load_client(Choice(vlm="http://127.0.0.1:9"))),
    ],
)
def test_it_is_said_before_anything_is_loaded(installed, name, load):
    installed[name] = "0.1"
    with pytest.raises(PackageError, match=f"{name} 0.1 is too old"):
        load()


def test_the_oldest_versions_are_those_that_are_installed_with_the_pack():
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    asked = dict(re.findall(r'^    "(\w+)>=([\d.]+)",', project, re.MULTILINE))
    assert {name: asked[name] for name in packages.OLDEST} == {name: packages.wanted(name) for name in packages.OLDEST}
