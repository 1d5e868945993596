"""Every error of the tree has one HTTP answer, and its body has OpenAI's shape."""

from __future__ import annotations

import json

import pytest

from api.auth import KeyRing, check_listener, hash_of
from api.errors import http_error
from firstlight.database.records import ApiKeyRecord, StoredKeys
from firstlight.domain import errors
from firstlight.settings import Settings

EXPECTED = {
    errors.InvalidInput: 400,
    errors.ContextTooLong: 400,
    errors.UnsupportedParameter: 400,
    errors.SourceUnsupported: 400,
    errors.UnknownModel: 404,
    errors.ModelExists: 409,
    errors.QueueFull: 429,
    errors.NoCapacity: 503,
    errors.StartTimeout: 503,
    errors.StartFailed: 503,
    errors.DatabaseUnavailable: 503,
    errors.SourceUnreachable: 503,
    errors.EngineGone: 503,
    errors.FirstlightError: 500,
}


@pytest.mark.parametrize(("kind", "status"), EXPECTED.items())
def test_status_code_and_retry_after(kind: type[errors.FirstlightError], status: int) -> None:
    answer = http_error(kind("a sentence", param="x"))
    assert answer.status == status
    body = json.loads(answer.body())["error"]
    assert body == {"message": "a sentence", "type": body["type"], "param": "x", "code": kind.code}
    assert ("Retry-After" in answer.headers()) == (status in (429, 503))


def test_retry_after_is_whole_seconds_that_clients_honour() -> None:
    for given, sent in ((0.1, "1"), (7.2, "8"), (10_000.0, "120")):
        assert http_error(errors.NoCapacity("x", retry_after_s=given)).headers()["Retry-After"] == sent


def settings(**values: object) -> Settings:
    return Settings(**values)  # type: ignore[arg-type]


def test_a_key_is_needed_as_soon_as_there_ever_was_one() -> None:
    keys = KeyRing(settings())
    assert not keys.is_required and not keys.is_known
    keys.replace_stored(StoredKeys(active=(), is_any_known=False))
    assert not keys.is_required and keys.is_known
    keys.replace_stored(stored(expires_at_unix_s=None))
    found = keys.find("one")
    assert keys.is_required and found is not None and found.scope == "inference"
    keys.replace_stored(StoredKeys(active=(), is_any_known=True))
    assert keys.is_required and keys.find("one") is None


def stored(*, expires_at_unix_s: float | None) -> StoredKeys:
    key = ApiKeyRecord(
        key_id="key-1",
        name="one",
        key_hash=hash_of("one"),
        scope="inference",
        created_at_unix_s=0.0,
        expires_at_unix_s=expires_at_unix_s,
        revoked_at_unix_s=None,
    )
    return StoredKeys(active=(key,), is_any_known=True)


def test_a_key_ends_at_its_second() -> None:
    clock = [100.0]
    keys = KeyRing(settings(), now_unix_s=lambda: clock[0])
    keys.replace_stored(stored(expires_at_unix_s=101.0))
    assert keys.find("one") is not None
    clock[0] = 101.0
    assert keys.find("one") is None


def test_a_listener_that_others_reach_needs_keys() -> None:
    open_to_all = settings(api_host="0.0.0.0")
    with pytest.raises(errors.InvalidSettings):
        check_listener(open_to_all, KeyRing(open_to_all))
    with_keys = settings(api_host="0.0.0.0", api_keys=" a , ,b")
    check_listener(with_keys, KeyRing(with_keys))
    found = KeyRing(with_keys).find("b")
    assert found is not None and found.scope == "admin"
    check_listener(settings(api_host="localhost"), KeyRing(settings()))
