"""Fixtures that several rooms share: one ComfyUI server serves the whole session."""

from __future__ import annotations

import pytest

from .comfy_fixtures import client, server

__all__ = ["client", "server", "state_folder"]


@pytest.fixture(scope="session", autouse=True)
def state_folder(tmp_path_factory):
    """What runs remember goes into a folder of the session, also where another process runs them."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLVR_STATE_DIR", str(folder))
        yield folder
