"""API keys: from the settings and from the `api_keys` table; only their SHA-256 is ever compared or kept."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from firstlight.domain.errors import InvalidSettings
from firstlight.settings import Settings

ADMIN = "admin"


def hash_of(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", errors="surrogateescape")).hexdigest()


def keys_of(settings: Settings) -> dict[str, str]:
    """Hash → scope of the keys in the settings: each may do everything."""
    given = "" if settings.api_keys is None else settings.api_keys.get_secret_value()
    return {hash_of(key.strip()): ADMIN for key in given.split(",") if key.strip()}


class KeyRing:
    """As soon as one key was ever seen, a key is required; revoking the last does not open the door again."""

    def __init__(self, settings: Settings) -> None:
        self._own = keys_of(settings)
        self._stored: dict[str, str] = {}
        self._is_required = bool(self._own)

    @property
    def is_required(self) -> bool:
        return self._is_required

    def replace_stored(self, hashes: Mapping[str, str]) -> None:
        """Hash → scope (inference or admin) of the active keys in the table."""
        self._stored = dict(hashes)
        self._is_required = self._is_required or bool(hashes)

    def scope_of(self, key: str) -> str | None:
        """What the key may do, or None for a key that is not known. Takes the same time for any key."""
        wanted, found = hash_of(key), None
        for known, scope in (*self._own.items(), *self._stored.items()):
            if hmac.compare_digest(wanted, known):
                found = scope
        return found


def check_listener(settings: Settings, keys: KeyRing) -> None:
    """Raises: InvalidSettings for an API that others can reach and that asks nobody for a key."""
    if not settings.is_loopback() and not keys.is_required:
        raise InvalidSettings(
            f"the API would listen on {settings.api_host} without keys: set FIRSTLIGHT_API_KEYS, "
            "create a key, or listen on 127.0.0.1",
            setting="FIRSTLIGHT_API_KEYS",
        )
