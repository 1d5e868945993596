"""Where models come from: `file://`, `http(s)://`, `s3://`, `gs://`, `az://`, `hf://`.

`describe_source` answers what a URI holds without moving weights; `open_source` gives ranged reads of it.
Every name a listing gives is validated before it may become a path, and pickle files are refused.
"""

from __future__ import annotations

from gpu_worker.store.sources.description import Layout, Source, SourceDescription, SourceFile
from gpu_worker.store.sources.dispatch import describe_source, open_source

__all__ = ["Layout", "Source", "SourceDescription", "SourceFile", "describe_source", "open_source"]
