"""The key in ComfyUI's settings, in a real ComfyUI: it goes to the address beside it, and is nowhere else."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager

import pytest

from scripts.comfy import ROOT, Client, ComfyError, Server

from .comfy_fixtures import hurried, nodes_of
from .vlm_fixtures import complaint, completion, serving

pytestmark = pytest.mark.comfy
ADDRESS, KEY = "CLVR.VLM.Address", "CLVR.VLM.Key"
SECRET = "sk-of-the-user-s-settings"


class SharedServer(Server):
    def _command(self):
        return [*super()._command(), "--multi-user"]


def answer(body):
    asked = re.findall(r"^- (\S+):", body["messages"][-1]["content"][-1]["text"], re.MULTILINE)
    return completion(json.dumps({"results": [{"check": check, "answer": "yes"} for check in asked]}))


def judged_by(vlm):
    """The shipped closed loop with a server in the place of the built-in verifier."""
    workflow = hurried("clvr_closed_loop", rounds=1)
    inputs = {"address": vlm.url, "model": "tiny", "seconds": 30, "retries": 0, "max_tokens": 64}
    workflow["vlm"] = {"class_type": "CLVRVLMServer", "inputs": inputs}
    nodes_of(workflow, "CLVRClosedLoop")[0]["inputs"] |= {"verifier": ["vlm", 1], "folder": "clvr/key"}
    return workflow


def planned_by(vlm):
    workflow = judged_by(vlm)
    nodes_of(workflow, "CLVRClosedLoop")[0]["inputs"]["controller"] = ["vlm", 0]
    return workflow


def keys(vlm):
    return {headers.get("authorization") for _, headers, _ in vlm.requests}


@contextmanager
def settings(client, address, key=SECRET):
    """Stored by the route that the settings dialog uses."""
    client.post("settings", {ADDRESS: address, KEY: key})
    try:
        yield
    finally:
        client.post("settings", {ADDRESS: "", KEY: ""})


def holding(server, secret):
    """Files of the server, its log among them, that have the key in them."""
    return [path for path in server.base.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def test_the_key_goes_to_the_address_beside_it_and_is_in_no_other_file_and_no_history(client, server):
    with serving(answer) as vlm, settings(client, f"{vlm.url}/v1/"):
        history = client.run(judged_by(vlm))
        assert keys(vlm) == {f"Bearer {SECRET}"}
        assert SECRET not in json.dumps(history)
        assert SECRET not in json.dumps(client.get("clvr/runs"))
        assert holding(server, SECRET) == [server.base / "user" / "default" / "comfy.settings.json"]


def test_the_key_goes_to_no_other_address(client):
    with serving(answer) as vlm, serving(answer) as other, settings(client, other.url):
        client.run(judged_by(vlm))
        assert keys(vlm) == {None}
        assert not other.requests


def test_a_key_that_is_set_after_a_refusal_is_used_and_a_refused_one_is_not_told(client):
    with serving(complaint(401, f"no entry for {SECRET}")) as vlm:
        with pytest.raises(ComfyError, match="ComfyUI's settings under CLVR"):
            client.run(planned_by(vlm))
        with settings(client, vlm.url), pytest.raises(ComfyError, match="refused the API key") as caught:
            client.run(planned_by(vlm))
        assert keys(vlm) == {None, f"Bearer {SECRET}"}
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("content", [f'{{"{KEY}": "{SECRET}', f'["{SECRET}"]', f"\xff{SECRET}"])
def test_damaged_settings_are_named_in_the_log_and_give_no_key(client, server, content):
    path = server.base / "user" / "default" / "comfy.settings.json"
    before, logged = path.read_bytes() if path.exists() else b"{}", server.log.stat().st_size
    try:
        path.write_bytes(content.encode("latin-1"))
        with serving(answer) as vlm:
            client.run(judged_by(vlm))
        assert keys(vlm) == {None}
    finally:
        path.write_bytes(before)
    told = server.log.read_bytes()[logged:].decode()
    assert f"takes no VLM key from {path}" in told
    assert SECRET not in told


def test_the_environment_goes_before_the_settings(tmp_path):
    with serving(answer) as vlm:
        environment = {"CLVR_VLM_URL": vlm.url, "CLVR_VLM_API_KEY": "sk-of-the-environment"}
        with Server(tmp_path, environment=environment) as server, settings(Client(server.address), vlm.url):
            Client(server.address).run(judged_by(vlm))
        assert keys(vlm) == {"Bearer sk-of-the-environment"}


def test_of_several_users_none_gives_a_key(tmp_path):
    user = tmp_path / "user" / "default"
    user.mkdir(parents=True)
    with serving(answer) as vlm, SharedServer(tmp_path) as server:
        (user / "comfy.settings.json").write_text(json.dumps({ADDRESS: vlm.url, KEY: SECRET}), encoding="utf-8")
        Client(server.address).run(judged_by(vlm))
        assert keys(vlm) == {None}


def test_the_dialog_s_settings_are_those_that_are_read():
    script = (ROOT / "web" / "clvr.js").read_text(encoding="utf-8")
    assert re.findall(r'id: "(CLVR\.\S+)"', script) == [ADDRESS, KEY]
    assert 'type: "password"' in script
