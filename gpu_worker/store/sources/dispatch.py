"""From a URI to the kind of source it names; the one place that validates a source URI."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from firstlight.domain.errors import SourceUnsupported
from gpu_worker.store.sources.description import Source, SourceDescription
from gpu_worker.store.sources.files import FileSource
from gpu_worker.store.sources.hub import HubSource
from gpu_worker.store.sources.layout import refuse_pickle, safe_name
from gpu_worker.store.sources.objects import open_bucket
from gpu_worker.store.sources.redaction import redacted
from gpu_worker.store.sources.web import WebSource

SCHEMES = ("file", "http", "https", "s3", "gs", "az", "hf")
_LIMIT = 2048


def open_source(uri: str) -> Source:
    """Validate `uri` and open it; nothing is read yet. Raises: SourceUnsupported, SourceCorrupt."""
    parts = _split(uri)
    if parts.scheme == "file":
        return FileSource(uri=uri, path=_local_path(uri, parts))
    if parts.scheme == "hf":
        return _open_hub(uri, parts)
    if not parts.netloc or "@" in parts.netloc:
        raise SourceUnsupported(
            "a source names a host or bucket, and never a user or password: credentials come from the "
            "host's environment",
            source=redacted(uri),
        )
    folder, file_name = _split_file(parts)
    if parts.scheme in ("http", "https"):
        return WebSource(uri=uri, base=folder, file_name=file_name)
    return open_bucket(uri=uri, scheme=parts.scheme, root=folder, file_name=file_name)


async def describe_source(uri: str) -> SourceDescription:
    """What `uri` holds now, without moving weights.

    Raises: SourceUnsupported (scheme, layout, pickle), SourceUnreachable, SourceCorrupt.
    """
    return await open_source(uri).describe()


def _open_hub(uri: str, parts: SplitResult) -> HubSource:
    path, _, revision = (parts.netloc + parts.path).partition("@")
    folder, _, last = path.strip("/").rpartition("/")
    refuse_pickle(last)
    if last.lower().endswith(".gguf") and "/" in folder:
        return HubSource(uri=uri, repository=folder, revision=revision or "main", file_name=safe_name(last))
    return HubSource(uri=uri, repository=path.strip("/"), revision=revision or "main")


def _split(uri: str) -> SplitResult:
    if len(uri) > _LIMIT or any(ord(letter) < 32 for letter in uri):
        raise SourceUnsupported("a source is a URI of at most 2048 printable characters")
    try:
        parts = urlsplit(uri)
    except ValueError as failure:
        raise SourceUnsupported(f"{redacted(uri)[:200]!r} is not a URI: {failure}") from failure
    # It may hold a password or a signature: what is wrong with it is said without.
    said = redacted(uri)[:200]
    if parts.scheme not in SCHEMES:
        raise SourceUnsupported(
            f"source {said!r} has no scheme that is served: use {', '.join(f'{s}://' for s in SCHEMES)}",
            source=said,
        )
    if parts.query or parts.fragment:
        raise SourceUnsupported(f"source {said!r}: queries and fragments are not served", source=said)
    if ".." in unquote(parts.path).split("/"):
        raise SourceUnsupported(f"source {said!r} climbs out of its path with '..'", source=said)
    return parts


def _local_path(uri: str, parts: SplitResult) -> Path:
    if parts.netloc not in ("", "localhost"):
        raise SourceUnsupported(f"{redacted(uri)}: file:// takes an absolute path, file:///…")
    path = Path(unquote(parts.path))
    if not path.is_absolute():
        raise SourceUnsupported(f"{redacted(uri)}: file:// takes an absolute path, file:///…")
    return path


def _split_file(parts: SplitResult) -> tuple[str, str | None]:
    """The folder's URL, and the one .gguf file that is meant, if any. Safetensors mean their folder."""
    folder, _, last = parts.path.rpartition("/")
    refuse_pickle(last)
    if last.lower().endswith(".gguf"):
        return parts._replace(path=folder).geturl(), safe_name(unquote(last))
    if last.lower().endswith(".safetensors"):
        return parts._replace(path=folder).geturl(), None
    return parts._replace(path=parts.path.rstrip("/")).geturl(), None
