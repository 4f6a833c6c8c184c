"""A VLM as controller and verifier. Nothing here needs torch but the clients that compute: `local`, `encoder`."""

from .agents import VLMController, VLMVerifier
from .chat import ChatClient, Message, Reply, TokenLogprob
from .client import ClientSettings, OpenAIClient

__all__ = [
    "ChatClient",
    "ClientSettings",
    "Message",
    "OpenAIClient",
    "Reply",
    "TokenLogprob",
    "VLMController",
    "VLMVerifier",
]
