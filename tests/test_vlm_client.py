"""The OpenAI-compatible client against loopback servers that behave and misbehave."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import logging
import socket
import threading
import time

import pytest
from PIL import Image

from clvr.errors import ReplyError, VLMConnectionError, VLMError, VLMSetupError, VLMTimeoutError
from clvr.trajectory import Usage
from clvr.vlm import Message, OpenAIClient
from clvr.vlm.wire import Address

from .vlm_fixtures import FAST, Sent, complaint, completion, listing, serving

HELLO = [Message("user", ("hello",))]
SCHEMA = {"type": "object"}
KEY = "sk-0123456789abcdefghij"


def test_text_and_images_arrive_interleaved_and_small_enough():
    wide = Image.new("RGBA", (300, 150), "red")
    turns = [
        Message("system", ("be brief",)),
        Message("user", ("a", wide, "b", Image.new("RGB", (10, 20), "blue"), "c\ud800")),
        Message("assistant", ("one", "two")),
    ]
    with serving(completion("fine")) as server:
        settings = dataclasses.replace(FAST, image_side=100, seed=3, extra={"top_k": 1})
        reply = OpenAIClient(server.url, "tiny", settings=settings).chat(turns, SCHEMA)
    assert (reply.text, reply.usage, reply.truncated) == ("fine", Usage(1, 7, 3), False)
    body = server.chats[0]
    assert (body["model"], body["seed"], body["top_k"], body["temperature"]) == ("tiny", 3, 1, 0.0)
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert [m["content"] for m in body["messages"][::2]] == ["be brief", "one\ntwo"]
    parts = body["messages"][1]["content"]
    assert [p["type"] for p in parts] == ["text", "image_url", "text", "image_url", "text"]
    assert parts[-1]["text"] == "c?"
    sizes = [_image(p["image_url"]["url"]) for p in parts if p["type"] == "image_url"]
    assert sizes == [((100, 50), (255, 0, 0)), ((10, 20), (0, 0, 255))]


def _image(url):
    image = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
    return image.size, image.getpixel((0, 0))


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("localhost:8000", "http://localhost:8000/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
        ("http://h/v1/", "http://h/v1"),
        ("https://h/v1/chat/completions", "https://h/v1"),
        ("https://h/api", "https://h/api/v1"),
        ("https://h/v1beta/openai/", "https://h/v1beta/openai"),
        (" http://[::1]:8000 ", "http://[::1]:8000/v1"),
    ],
)
def test_an_address_is_taken_with_or_without_its_version(given, url):
    assert Address.parse(given).url == url


@pytest.mark.parametrize(
    "given", ["", "ftp://h", "http://", "http://h:port", "a b", "http://h:1/?key=1", "http://me:pw@h"]
)
def test_what_is_no_address_is_refused_without_quoting_a_password(given):
    with pytest.raises(VLMSetupError) as caught:
        Address.parse(given)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.9", True),
        ("[::1]", True),
        ("localhost", True),
        ("localhost.com", False),
        ("10.0.0.1", False),
    ],
)
def test_loopback_addresses_are_told_from_others(host, loopback):
    assert Address.parse(host).loopback is loopback


def test_a_proxy_from_the_environment_is_not_used_for_this_machine(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(completion("fine")) as server:
        assert server.client().chat(HELLO).text == "fine"


def test_a_server_that_is_down_is_named_with_the_way_to_start_one():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        client = OpenAIClient(f"127.0.0.1:{taken.getsockname()[1]}", "tiny", settings=FAST)
        with pytest.raises(VLMConnectionError, match=r"No VLM server answers at http://127.*vllm serve.*ollama"):
            client.chat(HELLO)


@pytest.mark.parametrize("slow", [Sent(after=5.0), Sent(body="x" * 100, trickle=0.03)], ids=["silent", "trickling"])
def test_a_slow_server_runs_into_the_time_limit_once(slow):
    with serving(slow) as server:
        client = OpenAIClient(server.url, "tiny", settings=dataclasses.replace(FAST, read=0.2))
        began = time.monotonic()
        with pytest.raises(VLMTimeoutError, match=r"within 0\.2 seconds"):
            client.chat(HELLO)
    assert time.monotonic() - began < 4
    assert len(server.chats) == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503, 529])
def test_a_server_in_trouble_is_asked_again(status):
    with serving(complaint(status, "busy"), complaint(status, "busy"), completion("fine")) as server:
        assert server.client().chat(HELLO).text == "fine"
    assert len(server.chats) == 3


def test_a_server_that_stays_in_trouble_is_given_up():
    with (
        serving(complaint(500, "out of\n memory")) as server,
        pytest.raises(VLMError, match=r"\(500\): out of memory"),
    ):
        server.client().chat(HELLO)
    assert len(server.chats) == 3


@pytest.mark.parametrize(("asked", "least", "most"), [("0.2", 0.2, 4.0), ("600", 0.3, 4.0), ("tomorrow", 0.0, 4.0)])
def test_retry_after_is_honoured_within_bounds(asked, least, most):
    with serving(complaint(429, "wait", **{"Retry-After": asked}), completion("fine")) as server:
        client = OpenAIClient(server.url, "tiny", settings=dataclasses.replace(FAST, longest_wait=0.3))
        began = time.monotonic()
        client.chat(HELLO)
    assert least <= time.monotonic() - began < most


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_said_at_once_and_never_shown(status, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    with serving(complaint(status, f"Incorrect API key: {KEY}")) as server:
        client = server.client(api_key=f" {KEY}\n")
        with pytest.raises(VLMSetupError, match=r"Incorrect API key: \*\*\*") as caught:
            client.chat(HELLO)
    assert server.requests[0][1]["authorization"] == f"Bearer {KEY}"
    assert len(server.requests) == 1
    shown = [repr(client), repr(vars(client)["_secret"]), client.name, repr(caught.value), caplog.text]
    assert caught.value.__cause__ is None
    assert not any(KEY in text for text in shown)


def test_a_server_that_wants_a_key_is_answered_with_where_to_put_it():
    with serving(complaint(401, "no key")) as server, pytest.raises(VLMSetupError, match="CLVR_VLM_API_KEY") as caught:
        server.client().chat(HELLO)
    assert "asks for an API key (401): no key" in str(caught.value)


@pytest.mark.parametrize("key", ["two words-0123456789", "new\nline-0123456789", "schlüssel-0123456789"])
def test_a_key_that_no_header_can_hold_is_refused_without_quoting_it(key):
    with pytest.raises(VLMSetupError) as caught:
        OpenAIClient("localhost:1", api_key=key)
    assert "0123456789" not in str(caught.value)


def test_a_placeholder_for_a_key_does_not_change_replies():
    with serving(completion("The sign says EMPTY")) as server:
        assert server.client(api_key="EMPTY").chat(HELLO).text == "The sign says EMPTY"


def test_no_redirect_takes_the_key_elsewhere():
    with serving(completion("stolen")) as thief:
        away = Sent(307, "", {"Location": f"{thief.url}/v1/chat/completions"})
        with serving(away) as server, pytest.raises(VLMSetupError, match=f"redirects to {thief.url}"):
            server.client(api_key=KEY).chat(HELLO)
    assert thief.requests == []


@pytest.mark.parametrize(
    "refusal",
    [
        complaint(404, "The model `tiny` does not exist."),
        complaint(400, "model 'tiny' not found, try pulling it"),
    ],
)
def test_an_unknown_model_is_answered_with_those_there_are(refusal):
    said = r"has no model 'tiny'.*It has 2: qwen3-vl:8b, llava"
    with (
        serving(refusal, models=listing("qwen3-vl:8b", "llava")) as server,
        pytest.raises(VLMSetupError, match=said),
    ):
        server.client().chat(HELLO)


def test_an_address_without_an_api_is_told_from_an_unknown_model():
    page = Sent(404, "<!DOCTYPE html><h1>Not Found</h1>", {"Content-Type": "text/html"})
    with (
        serving(page, models=page) as server,
        pytest.raises(VLMSetupError, match="no OpenAI-compatible API at"),
    ):
        server.client().chat(HELLO)


def test_the_only_model_is_taken_and_one_of_many_must_be_named():
    with serving(completion("fine"), models=listing("the-one")) as server:
        client = OpenAIClient(server.url, settings=FAST)
        client.chat(HELLO)
    assert server.chats[0]["model"] == "the-one"
    assert client.name.startswith("the-one@127.0.0.1:")
    with (
        serving(models=listing("a", "b")) as server,
        pytest.raises(VLMSetupError, match=r"2 models: a, b.*Name the one"),
    ):
        OpenAIClient(server.url, settings=FAST).chat(HELLO)


def picky(*refused, message="Unsupported parameter: '{}'"):
    """A server that refuses the first field of `refused` that a request holds."""

    def answer(body):
        field = next((f for f in refused if f in body), None)
        return complaint(400, message.format(field)) if field else completion("fine")

    return answer


@pytest.mark.parametrize(
    ("server", "requests"),
    [
        (picky("response_format"), 2),
        (picky("response_format", message="grammar is not supported"), 2),
        (picky("logprobs", "top_logprobs"), 3),
        (
            picky(
                "max_tokens",
                "temperature",
                message="Unsupported parameter: '{}'. Use 'max_completion_tokens'.",
            ),
            4,
        ),
        (picky("max_tokens", "max_completion_tokens"), 3),
    ],
)
def test_a_field_that_the_server_refuses_is_left_out_and_remembered(server, requests):
    with serving(server) as running:
        client = running.client()
        assert client.chat(HELLO, SCHEMA, logprobs=True).text == "fine"
        first = len(running.chats)
        assert client.chat(HELLO, SCHEMA, logprobs=True).text == "fine"
    assert first <= requests
    assert len(running.chats) == first + 1


def test_a_request_that_is_refused_for_another_reason_fails_and_nothing_is_remembered():
    full = complaint(400, "the prompt is longer than the context")
    with serving(full, full, completion("fine")) as server:
        client = server.client()
        with pytest.raises(VLMError, match="longer than the context"):
            client.chat(HELLO, SCHEMA)
        client.chat(HELLO, SCHEMA)
    assert "response_format" in server.chats[-1]


NO_API = {
    "a web page": Sent(200, "<html><body>Welcome</body></html>", {"Content-Type": "text/html"}),
    "something other than JSON": Sent(200, b"\xff\xfe\x00"),
    "brackets": Sent(200, "[" * 100_000),
}


@pytest.mark.parametrize("answer", NO_API.values(), ids=NO_API)
def test_an_answer_that_is_no_json_means_a_wrong_address(answer):
    with serving(answer) as server, pytest.raises(VLMSetupError, match="answers with"):
        server.client().chat(HELLO)


@pytest.mark.parametrize(
    "body",
    [
        "null",
        "[]",
        "{}",
        '"hi"',
        '{"choices": []}',
        '{"choices": {}}',
        '{"choices": [null]}',
        '{"choices": [{"message": 1}]}',
    ],
)
def test_json_that_is_no_completion_is_an_error(body):
    with serving(Sent(200, body)) as server, pytest.raises(VLMError, match="no chat completion"):
        server.client().chat(HELLO)


def test_an_error_in_an_answer_that_claims_success_is_an_error():
    answer = Sent(200, '{"error": {"message": "CUDA out of memory"}}')
    with serving(answer) as server, pytest.raises(VLMError, match="CUDA out of memory"):
        server.client().chat(HELLO)


def test_odd_usage_and_logprobs_are_ignored():
    choice = {
        "message": {"content": "fine"},
        "logprobs": {"content": [None, {"token": 1, "top_logprobs": [None, {}]}]},
    }
    body = json.dumps({"choices": [choice], "usage": {"prompt_tokens": "7", "completion_tokens": -1}})
    with serving(Sent(200, body)) as server:
        assert server.client().chat(HELLO).usage == Usage(1, 0, 0)


def test_log_probabilities_are_read():
    row = {"token": "yes", "logprob": -0.1, "top_logprobs": [{"token": "no", "logprob": -2.5}]}
    body = json.dumps({"choices": [{"message": {"content": "yes"}, "logprobs": {"content": [row]}}]})
    with serving(Sent(200, body)) as server:
        reply = server.client().chat(HELLO, logprobs=True)
    assert reply.logprobs is not None
    assert dict(reply.logprobs[0].top) == {"yes": -0.1, "no": -2.5}


def test_a_huge_answer_is_cut_short():
    with serving(Sent(200, "x" * 3_000_000)) as server:
        client = OpenAIClient(server.url, "tiny", settings=dataclasses.replace(FAST, max_body=1_000_000))
        with pytest.raises(VLMError, match="larger than 1000000 bytes"):
            client.chat(HELLO)


EMPTY = {
    "used all its 4096 tokens thinking": completion("", "length", reasoning_content="Let me see"),
    "used all its 4096 tokens and answered nothing": completion(None, "length"),
    "thinking only": completion("", reasoning="I think so."),
    "reply is empty": completion(" \n"),
    "refused: I cannot": completion(None, refusal="I cannot help with that."),
}


@pytest.mark.parametrize(("reason", "answer"), EMPTY.items(), ids=EMPTY)
def test_a_reply_without_text_says_why(reason, answer):
    with serving(answer) as server, pytest.raises(ReplyError, match=reason):
        server.client().chat(HELLO)


def test_an_answer_that_the_server_filed_under_reasoning_is_found():
    with serving(completion(None, reasoning_content='{"action": "stop"}')) as server:
        assert server.client().chat(HELLO).text == '{"action": "stop"}'


def test_content_may_come_in_parts_and_cut_off():
    with serving(completion([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "length")) as server:
        reply = server.client().chat(HELLO)
    assert (reply.text, reply.truncated) == ("ab", True)


class InterruptedRun(Exception):
    pass


@pytest.mark.parametrize(
    "pending", [Sent(after=20.0), complaint(503, "busy", **{"Retry-After": "20"})], ids=["answer", "retry"]
)
def test_an_interrupt_ends_a_call_soon_and_hangs_up(pending):
    def waiting():
        if server.requests:
            raise InterruptedRun

    with serving(pending, completion("fine")) as server:
        patient = dataclasses.replace(FAST, read=20, longest_wait=20)
        client = OpenAIClient(server.url, "tiny", settings=patient, waiting=waiting)
        began = time.monotonic()
        with pytest.raises(InterruptedRun):
            client.chat(HELLO)
        assert time.monotonic() - began < 10
        if pending.after:
            assert server.gone.wait(10)


def test_a_connection_that_is_cut_before_it_stands_does_not_stay_open():
    def waiting():
        raise InterruptedRun

    with serving(Sent(after=20.0)) as server:
        client = OpenAIClient(server.url, "tiny", settings=dataclasses.replace(FAST, read=20), waiting=waiting)
        with pytest.raises(InterruptedRun):
            client.chat(HELLO)
        threads = [t for t in threading.enumerate() if t.name == "vlm-request"]
        for thread in threads:
            thread.join(10)
        assert not any(t.is_alive() for t in threads)


def test_errors_reach_the_caller_through_the_waiting_thread():
    with serving(complaint(401, "no")) as server, pytest.raises(VLMSetupError):
        server.client(waiting=lambda: None).chat(HELLO)


def test_the_connection_is_not_kept_for_a_server_that_restarts():
    with serving(completion("fine")) as server:
        client = server.client()
        client.chat(HELLO)
    with pytest.raises(VLMConnectionError):
        client.chat(HELLO)
    client.close()
