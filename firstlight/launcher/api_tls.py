"""TLS of the API's listener, and how our own clients look at it."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from firstlight.domain.errors import InvalidSettings
from firstlight.settings import Settings


# Any: keyword arguments of uvicorn.Config, which are of several types.
def tls_options(settings: Settings) -> dict[str, Any]:
    """Empty without a certificate. Raises: InvalidSettings for files that are none."""
    if settings.api_tls_cert is None:
        if settings.api_tls_key is not None or settings.api_tls_client_ca is not None:
            raise InvalidSettings(
                "FIRSTLIGHT_API_TLS_CERT must name the certificate, too", setting="FIRSTLIGHT_API_TLS_CERT"
            )
        return {}
    _check_pair(settings.api_tls_cert, settings.api_tls_key)
    options: dict[str, Any] = {
        "ssl_certfile": str(settings.api_tls_cert),
        "ssl_keyfile": str(settings.api_tls_key) if settings.api_tls_key is not None else None,
    }
    if settings.api_tls_client_ca is not None:
        _context(settings.api_tls_client_ca, "FIRSTLIGHT_API_TLS_CLIENT_CA")
        options["ssl_ca_certs"] = str(settings.api_tls_client_ca)
        options["ssl_cert_reqs"] = ssl.CERT_REQUIRED
    return options


def api_verification(settings: Settings) -> ssl.SSLContext | bool:
    """For httpx: trust `api_ca`, else, on the API's own machine, the very certificate it shows.

    Raises: InvalidSettings.
    """
    trusted = settings.api_ca or settings.api_tls_cert
    if trusted is None:
        return True
    context = _context(trusted, "FIRSTLIGHT_API_CA")
    # The same settings that make the API ask for a certificate give its neighbours one to show.
    if settings.api_tls_client_ca is not None and settings.api_tls_cert is not None:
        context.load_cert_chain(settings.api_tls_cert, settings.api_tls_key)
    return context


def _check_pair(certificate: Path, key: Path | None) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as failure:
        raise InvalidSettings(
            f"{certificate} and {key or 'the key in it'} are no certificate with its key: {failure}",
            setting="FIRSTLIGHT_API_TLS_CERT",
        ) from failure


def _context(authority: Path, setting: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=authority)
    except (OSError, ssl.SSLError) as failure:
        raise InvalidSettings(f"{setting}: cannot use {authority}: {failure}", setting=setting) from failure
    return context
