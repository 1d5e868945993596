"""API keys: from the settings and from the `api_keys` table; only their SHA-256 is ever kept."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from firstlight.database.records import StoredKeys
from firstlight.domain.errors import InvalidSettings
from firstlight.settings import Settings

ADMIN = "admin"
# Shows people and scanners of leaked secrets what it is.
PREFIX = "fl-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What one key may do. `key_id` is what logs, audit and usage name; None: no limit, no end."""

    key_id: str
    scope: str
    requests_per_minute: int | None = None
    max_concurrent: int | None = None
    expires_at_unix_s: float | None = None


def new_key() -> str:
    """256 bits nobody can guess; shown once and never kept."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", errors="surrogateescape")).hexdigest()


def keys_of(settings: Settings) -> dict[str, Grant]:
    """Hash → grant of the keys in the settings: each may do everything."""
    given = "" if settings.api_keys is None else settings.api_keys.get_secret_value()
    hashes = [hash_of(key.strip()) for key in given.split(",") if key.strip()]
    return {digest: Grant(key_id=f"settings/{digest[:8]}", scope=ADMIN) for digest in hashes}


class KeyRing:
    """As soon as there ever was one key, a key is required, by every API on that database from then on.

    Revoking the last, or its end, does not open the door again.
    """

    def __init__(self, settings: Settings, *, now_unix_s: Callable[[], float] = time.time) -> None:
        self._own = keys_of(settings)
        self._stored: dict[str, Grant] = {}
        self._now_unix_s = now_unix_s
        self._is_required = bool(self._own)
        self._is_read = False

    @property
    def is_required(self) -> bool:
        return self._is_required

    @property
    def is_known(self) -> bool:
        """Whether it can be said if a key is required: not before the table was read for the first time."""
        return self._is_required or self._is_read

    def replace_stored(self, stored: StoredKeys) -> None:
        """What the table holds now."""
        self._is_read = True
        self._stored = {
            key.key_hash: Grant(
                key_id=key.key_id,
                scope=key.scope,
                requests_per_minute=key.requests_per_minute,
                max_concurrent=key.max_concurrent,
                expires_at_unix_s=key.expires_at_unix_s,
            )
            for key in stored.active
        }
        self._is_required = self._is_required or stored.is_any_known

    def find(self, key: str) -> Grant | None:
        """What the key may do, or None for one that is not known or has expired.

        Looked up by its hash: what the time of a look-up tells of a SHA-256 tells nothing of the key.
        """
        wanted = hash_of(key)
        found = self._own.get(wanted) or self._stored.get(wanted)
        if found is None or found.expires_at_unix_s is None:
            return found
        # The table is read every few seconds only; a key ends at its second.
        return found if self._now_unix_s() < found.expires_at_unix_s else None

    def still_allows(self, grant: Grant | None) -> bool:
        """Whether a stream that was begun with this grant may go on; None: begun without any key."""
        if grant is None:
            return not self._is_required
        is_there = grant in self._own.values() or grant in self._stored.values()
        return is_there and (grant.expires_at_unix_s is None or self._now_unix_s() < grant.expires_at_unix_s)


def check_listener(settings: Settings, keys: KeyRing) -> None:
    """Raises: InvalidSettings for an API that others can reach and that asks nobody for a key."""
    if not settings.is_loopback() and not keys.is_required:
        raise InvalidSettings(
            f"the API would listen on {settings.api_host} without keys: set FIRSTLIGHT_API_KEYS, "
            "create a key, or listen on 127.0.0.1",
            setting="FIRSTLIGHT_API_KEYS",
        )
