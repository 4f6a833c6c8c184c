"""The VLM server that a user has named in ComfyUI's settings, and its key. A workflow never holds them."""

from __future__ import annotations

import functools
import hmac
import json
import logging
import secrets
from pathlib import Path

ADDRESS, KEY = "CLVR.VLM.Address", "CLVR.VLM.Key"
"""As web/clvr.js registers them."""
_LOG = logging.getLogger(__name__)


def key_for(address: str) -> str | None:
    """The key, where the settings name the same address."""
    from ..clvr.models import vouched

    named, key = _named()
    return key if vouched(address, named) else None


def fingerprint() -> str:
    """Another one after the user changed the address or the key; '' where there is none. ComfyUI writes it into
    the prompt that saved images hold, so it is keyed anew in every process and tells nothing."""
    named = _named()
    return hmac.new(_salt(), json.dumps(named).encode(), "sha256").hexdigest()[:8] if any(named) else ""


@functools.cache
def _salt() -> bytes:
    return secrets.token_bytes(32)


def _named() -> tuple[str, str]:
    """Address and key, '' for what is not set. With several users both: a prompt does not tell whose it is."""
    import folder_paths
    from comfy.cli_args import args

    path = Path(folder_paths.get_user_directory()) / "default" / "comfy.settings.json"
    if args.multi_user or not path.is_file():
        return "", ""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        address, key = str(found.get(ADDRESS, "")), str(found.get(KEY, ""))
    except (OSError, ValueError, AttributeError):  # the error itself may quote the file
        _LOG.warning("CLVR takes no VLM key from %s: it is not the JSON that ComfyUI writes there.", path)
        return "", ""
    return address, key
