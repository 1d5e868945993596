"""The one place where an activity's error becomes a Temporal failure: its code is the failure's type."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, TypeVar

from activities.heartbeat import told_last
from firstlight.contracts.failures import application_error
from firstlight.domain.errors import FirstlightError

Self = TypeVar("Self")
Request = TypeVar("Request")
Receipt = TypeVar("Receipt")
Method = Callable[[Self, Request], Awaitable[Receipt]]


def answering(method: Method[Self, Request, Receipt]) -> Callable[[Self, Request], Any]:
    """Wrap an activity method. Any: what a coroutine function yields and is sent, which nobody uses."""

    @wraps(method)
    async def answered(self: Self, request: Request) -> Receipt:
        try:
            return await method(self, request)
        except FirstlightError as error:
            raise application_error(error, told=told_last()) from error

    return answered
