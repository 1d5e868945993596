"""Who may read /metrics of a role without HTTP of its own; light to import, for checks ahead of a start."""

from __future__ import annotations

from firstlight.domain.errors import InvalidSettings
from firstlight.settings import Settings, is_loopback


def check_metrics_listener(settings: Settings) -> None:
    """Raises: InvalidSettings for an address beyond loopback without a key."""
    is_closed = is_loopback(settings.metrics_host) or settings.rpc_plain or metrics_keys(settings)
    if settings.metrics_port is not None and not is_closed:
        raise InvalidSettings(
            f"metrics would be open to everyone at {settings.metrics_host}: set FIRSTLIGHT_API_KEYS, of "
            "which one is then asked for, or FIRSTLIGHT_RPC_PLAIN=true on a private network",
            setting="FIRSTLIGHT_METRICS_HOST",
        )


def metrics_keys(settings: Settings) -> tuple[bytes, ...]:
    """Of which a reader must send one; none on a network that is private."""
    if settings.rpc_plain or settings.api_keys is None:
        return ()
    given = settings.api_keys.get_secret_value()
    return tuple(key.strip().encode() for key in given.split(",") if key.strip())
