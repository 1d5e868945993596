"""Who this process is to the other roles: its certificate of the fleet's own CA, for every call.

A folder holds `ca.pem`, `cert.pem` and `key.pem`. Every role's certificate carries the DNS name `firstlight`:
whoever has one of this CA belongs to the fleet, wherever it runs. Assumed once, before the first call.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

import grpc

from firstlight.domain.errors import InvalidSettings

NAME = "firstlight"
FILES = ("ca.pem", "cert.pem", "key.pem")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """PEM texts; empty for none. `may_be_plain`: an operator takes the network itself for private."""

    authority: bytes = b""
    certificate: bytes = b""
    key: bytes = b""
    may_be_plain: bool = False

    @property
    def is_known(self) -> bool:
        return bool(self.authority)

    def server_credentials(self) -> grpc.ServerCredentials:
        return grpc.ssl_server_credentials(
            [(self.key, self.certificate)], root_certificates=self.authority, require_client_auth=True
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.authority, self.key, self.certificate)


# A process is one: its channels and servers are made in many places, and none may forget to ask.
_current = Identity()


def assume(folder: str | Path | None, *, may_be_plain: bool = False) -> Identity:
    """Be this from here on; without a folder, nobody in particular. Raises: InvalidSettings."""
    global _current
    if folder is None:
        _current = Identity(may_be_plain=may_be_plain)
        return _current
    authority, certificate, key = (_read(Path(folder) / name) for name in FILES)
    _current = Identity(authority=authority, certificate=certificate, key=key, may_be_plain=may_be_plain)
    return _current


def current() -> Identity:
    return _current


def check_listener(address: str, identity: Identity) -> None:
    """Raises: InvalidSettings for a listener that others can reach and that asks nobody who they are."""
    if identity.is_known or identity.may_be_plain or is_loopback(address):
        return
    raise InvalidSettings(
        f"everyone who reaches {address} could call this host: set FIRSTLIGHT_RPC_TLS_DIR to a folder with "
        f"{', '.join(FILES)}, or FIRSTLIGHT_RPC_PLAIN=true on a network that is private",
        setting="FIRSTLIGHT_RPC_TLS_DIR",
    )


def is_loopback(address: str) -> bool:
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return False


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as failure:
        raise InvalidSettings(
            f"cannot read {path}: {failure.strerror}; FIRSTLIGHT_RPC_TLS_DIR holds {', '.join(FILES)}",
            path=str(path),
        ) from failure
