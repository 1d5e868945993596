"""The settings of one process as another's environment, so that options given to `up` reach every role."""

from __future__ import annotations

import os

from pydantic import SecretStr

from firstlight.settings import Settings


def role_environment(settings: Settings) -> dict[str, str]:
    """This process's environment with every setting spelled out."""
    return dict(os.environ) | {
        f"FIRSTLIGHT_{name.upper()}": _text(value) for name, value in settings if value is not None
    }


def _text(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return str(value)
