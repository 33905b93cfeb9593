"""Every error has a status, and no error's body is large, whatever was put into it."""

import json

import pytest

from adapters_store.errors import AdapterdError, InvalidRequest, Overloaded, every_error
from server.api.errors import MAX_BODY_BYTES, STATUS, error_response, status_of
from server.api.middleware import request_id_of

EXPECTED = {
    "error": 500,
    "invalid_request": 400,
    "context_length_exceeded": 400,
    "unsupported_parameter": 400,
    "already_loaded": 400,
    "invalid_dataset": 400,
    "invalid_adapter": 400,
    "unsupported_adapter": 400,
    "too_large": 413,
    "unsupported_media_type": 415,
    "method_not_allowed": 405,
    "not_found": 404,
    "model_not_found": 404,
    "adapter_not_found": 404,
    "alias_not_found": 404,
    "file_not_found": 404,
    "job_not_found": 404,
    "conflict": 409,
    "name_reserved": 409,
    "alias_moved": 409,
    "version_in_use": 409,
    "overloaded": 429,
    "unavailable": 503,
    "engine_unavailable": 503,
    "draining": 503,
    "internal_error": 500,
    "engine_start_failed": 500,
    "adapter_load_failed": 500,
    "store_corrupt": 500,
    "engine_failed": 500,
}


def test_every_error_is_in_the_table():
    ours = {kind for kind in every_error() if kind.__module__ == AdapterdError.__module__}
    assert set(STATUS) == ours
    assert {kind.code: STATUS[kind][0] for kind in ours} == EXPECTED


@pytest.mark.parametrize("kind", STATUS, ids=lambda kind: kind.__name__)
def test_reply_has_the_shape(kind: type[AdapterdError]):
    reply = error_response(kind("what is wrong", param="n"))
    status, openai_type = STATUS[kind]
    assert reply.status_code == status
    assert json.loads(bytes(reply.body)) == {
        "error": {"message": "what is wrong", "type": openai_type, "param": "n", "code": kind.code}
    }
    assert ("retry-after" in reply.headers) == (status in (429, 503))
    assert reply.headers["content-type"] == "application/json"


def test_a_class_that_is_not_in_the_table_counts_as_its_parent():
    class Newer(Overloaded):
        pass

    assert status_of(Newer("")) == STATUS[Overloaded]


@pytest.mark.parametrize("text", ["x", "\x00", '"', "é", "\U0001f600", "\ud800"])
def test_a_body_stays_small(text: str):
    reply = error_response(InvalidRequest(text * 100_000, param=text * 100_000))
    assert len(reply.body) <= MAX_BODY_BYTES
    error = json.loads(bytes(reply.body).decode("utf-8"))["error"]
    assert error["message"].endswith("…")
    assert error["param"].endswith("…")


@pytest.mark.parametrize("good", ["abc", "0b1c-22", "a.b:c/d_e", "x" * 128])
def test_a_safe_request_id_is_kept(good: str):
    assert request_id_of(good) == good


@pytest.mark.parametrize("bad", [None, "", "x" * 129, "a b", "é", "a\n", 'a"b', "{x}"])
def test_any_other_request_id_is_replaced(bad: str | None):
    made = request_id_of(bad)
    assert made != bad
    assert made.startswith("req-")
    assert request_id_of(bad) != made
