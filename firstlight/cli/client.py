"""A small client of the REST API: JSON in, JSON out, and errors of the one error tree."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import httpx

from firstlight.domain.errors import ApiUnreachable, FirstlightError, error_type

DEFAULT_API_URL = "http://127.0.0.1:8080"


def find_api(url: str | None, key: str | None) -> tuple[str, str | None]:
    """URL and key: as given, else the address of the local run or the default one.

    A shell that has the local API's own keys needs no other; they are shown to no API that was named.
    """
    if url:
        return url.rstrip("/"), key
    from firstlight.launcher.run_file import read_run
    from firstlight.settings import read_settings

    settings = read_settings()
    record = read_run(settings.state_dir)
    scheme = "http" if settings.api_tls_cert is None else "https"
    found = record.api_url if record else f"{scheme}://{settings.api_host}:{settings.api_port}"
    return found, key or settings.first_api_key()


class ApiClient:
    """Any in results: the JSON of another process, read field by field by the command that prints it."""

    def __init__(self, url: str | None, key: str | None = None) -> None:
        self.url, found_key = find_api(url, key)
        headers = {"Authorization": f"Bearer {found_key}"} if found_key else {}
        # A read may last as long as a cold start; the API answers in its own time, within its own deadline.
        timeout = httpx.Timeout(None, connect=5.0)
        self._http = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=timeout,
            trust_env=False,
            verify=_verification(self.url),
        )

    def __enter__(self) -> ApiClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, **params: str | int | None) -> Any:
        given = {name: value for name, value in params.items() if value is not None}
        return self._send("GET", path, params=given)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._send("POST", path, json=dict(body))

    def delete(self, path: str) -> Any:
        return self._send("DELETE", path)

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[str]:
        """Lines of a server-sent event stream, as they come. Raises: FirstlightError, ApiUnreachable."""
        try:
            with self._http.stream("POST", path, json=dict(body)) as response:
                if response.is_error:
                    response.read()
                    raise self._error_of(response)
                yield from response.iter_lines()
        except httpx.TransportError as failure:
            raise self._unreachable(failure) from failure

    # Any: keyword arguments of httpx, and the JSON it returns.
    def _send(self, method: str, path: str, **options: Any) -> Any:
        try:
            response = self._http.request(method, path, **options)
        except httpx.TransportError as failure:
            raise self._unreachable(failure) from failure
        if response.is_error:
            raise self._error_of(response)
        return response.json() if response.content else None

    def _error_of(self, response: httpx.Response) -> FirstlightError:
        failure = _error_of(response)
        if response.status_code not in (401, 403):
            return failure
        # The API speaks of a header, which is nothing a user of the command line writes.
        next_step = "with --key or FIRSTLIGHT_API_KEY"
        if "Authorization" not in response.request.headers:
            failure.message = f"the API at {self.url} needs a key: give one {next_step}"
        else:
            failure.message = (
                f"the API at {self.url} refuses this key ({failure.message}): give another {next_step}"
            )
        return failure

    def _unreachable(self, failure: httpx.TransportError) -> ApiUnreachable:
        if isinstance(failure, httpx.ConnectError | httpx.ConnectTimeout):
            return ApiUnreachable(
                f"no API answers at {self.url}: start one with `firstlight up`, or name another with --api"
            )
        return ApiUnreachable(
            f"the connection to {self.url} ended before the answer did; look at it with `firstlight status`"
        )


def _verification(url: str) -> ssl.SSLContext | bool:
    """How the API's certificate is looked at; settings are read only for one that has any."""
    if not url.startswith("https"):
        return True
    from firstlight.launcher.api_tls import api_verification
    from firstlight.settings import read_settings

    return api_verification(read_settings())


def _error_of(response: httpx.Response) -> FirstlightError:
    try:
        return error_from(response.json()["error"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return FirstlightError(f"the API answered {response.status_code} {response.reason_phrase}")


def error_from(body: Mapping[str, Any]) -> FirstlightError:
    """The error a JSON error body speaks of."""
    code, message = str(body.get("code") or ""), str(body.get("message") or "unknown error")
    kind = error_type(code)
    failure = FirstlightError(message) if kind.__init__ is not FirstlightError.__init__ else kind(message)
    failure.fields["code"] = code
    return failure
