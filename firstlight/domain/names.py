"""Identifiers, and the one place that decides whether a string may be one.

Names become directory names, workflow ids, metric labels and URLs, so the alphabet is small on purpose.
"""

from __future__ import annotations

import re
from typing import NewType

from firstlight.domain.errors import InvalidName

ModelName = NewType("ModelName", str)
HostId = NewType("HostId", str)
InstanceId = NewType("InstanceId", str)
CheckpointId = NewType("CheckpointId", str)
DecisionId = NewType("DecisionId", str)
Epoch = NewType("Epoch", int)

_MODEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
_HOST = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_REVISION = re.compile(r"[A-Za-z0-9]{4,64}")


def model_name(text: str) -> ModelName:
    """Accept letters, digits, dot, underscore and dash (1–96, alphanumeric at both ends).

    Raises: InvalidName for anything else, path separators and `..` included.
    """
    if not _MODEL.fullmatch(text) or ".." in text:
        raise InvalidName(
            f"model name {text[:120]!r} is not allowed: use 1 to 96 letters, digits, '.', '_' or '-', "
            "beginning and ending with a letter or digit",
            name=text[:120],
        )
    return ModelName(text)


def host_id(text: str) -> HostId:
    """Accept a DNS label: lower-case letters, digits and dashes. Raises: InvalidName."""
    if not _HOST.fullmatch(text):
        raise InvalidName(
            f"host id {text[:80]!r} is not allowed: use lower-case letters, digits and '-' (at most 63)",
            name=text[:80],
        )
    return HostId(text)


def checkpoint_id(model: ModelName, revision: str) -> CheckpointId:
    """`<model>@<revision>`: also the checkpoint's directory name in every SSD cache. Raises: InvalidName."""
    if not _REVISION.fullmatch(revision):
        raise InvalidName(f"revision {revision[:80]!r} is not 4 to 64 letters or digits", name=revision[:80])
    return CheckpointId(f"{model_name(model)}@{revision}")


def parse_checkpoint_id(text: str) -> tuple[ModelName, str]:
    """Split and validate `<model>@<revision>`; a store calls this before the id becomes a path."""
    name, separator, revision = text.partition("@")
    if not separator:
        raise InvalidName(f"checkpoint id {text[:160]!r} lacks '@revision'", name=text[:160])
    return model_name(name), checkpoint_id(ModelName(name), revision).partition("@")[2]
