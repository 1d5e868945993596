"""Sources against real servers: what they hold, fetched byte for byte, resumed, and refused in words."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from firstlight.domain.errors import (
    SourceCorrupt,
    SourceError,
    SourceUnreachable,
    SourceUnsupported,
)
from gpu_worker.store.fetch import fetch
from gpu_worker.store.fetch_journal import CHUNK_BYTES
from gpu_worker.store.sources import (
    Layout,
    Source,
    SourceDescription,
    SourceFile,
    describe_source,
    open_source,
)
from tests.integration import store_s3

WEIGHTS = bytes(range(256)) * (CHUNK_BYTES // 256 * 2 + 5)  # two chunks and a bit


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in Hugging Face layout; its weights are only bytes here."""
    path = tmp_path_factory.mktemp("layout") / "models" / "tiny"
    path.mkdir(parents=True)
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "tokenizer.json").write_text("{}")
    (path / "model-00001-of-00002.safetensors").write_bytes(WEIGHTS)
    (path / "model-00002-of-00002.safetensors").write_bytes(b"second")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (path / "pytorch_model.bin").write_bytes(b"never fetched")
    (path / ".gitattributes").write_text("never fetched")
    (path / "modules.json").write_text("[]")
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    (path / "1_Pooling" / "README.md").write_text("never fetched")
    return path


WANTED = {
    "config.json",
    "tokenizer.json",
    "modules.json",
    "1_Pooling/config.json",
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
}


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


class HubHandler(http.server.SimpleHTTPRequestHandler):
    """A folder with ranges, and the hub's three routes over it."""

    protocol_version = "HTTP/1.1"
    root: Path

    def log_message(self, *_: Any) -> None:
        return

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/org/tiny/revision/main"):
            self._json({"id": "org/tiny", "sha": "c0ffee1"})
        elif self.path.startswith("/api/models/org/tiny/tree/c0ffee1"):
            files = {str(path.relative_to(self.root)): path for path in files_in(self.root)}
            self._json(
                [
                    {"type": "file", "path": name, "size": path.stat().st_size, "oid": path.name}
                    for name, path in files.items()
                ]
                + [{"type": "directory", "path": "onnx", "oid": "x", "size": 0}]
            )
        else:
            self._file(send_body=True)

    def do_HEAD(self) -> None:
        self._file(send_body=False)

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self, *, send_body: bool) -> None:
        prefixes = ("/plain/tiny/", "/org/tiny/resolve/c0ffee1/")
        name = next((self.path.removeprefix(one) for one in prefixes if self.path.startswith(one)), "")
        path = self.root / name
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data, status = path.read_bytes(), 200
        total = len(data)
        if (wanted := self.headers.get("Range")) is not None:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end, status = int(first), min(int(last or total - 1), total - 1), 206
            data = data[start : end + 1]
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end}/{total}")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{path.name}"')
        self.end_headers()
        if send_body:
            self.wfile.write(data)


@contextmanager
def folder_server(folder: Path) -> Iterator[str]:
    """The folder at /plain/tiny and, as the hub has it, at org/tiny; yields where."""
    handler = type("Handler", (HubHandler,), {"root": folder})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def web(folder: Path) -> Iterator[str]:
    with folder_server(folder) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[str]:
    with store_s3.s3_server(tmp_path_factory.mktemp("s3")) as endpoint:
        client = store_s3.bucket(endpoint)
        for path in files_in(folder):
            client.put(f"llms/tiny/{path.relative_to(folder)}", path.read_bytes())
        client.put("llms/only-pickle/pytorch_model.bin", b"boo")
        client.put("llms/one.gguf", WEIGHTS)
        yield endpoint


@pytest.fixture
def clouds(s3: str, web: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in store_s3.environment(s3).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_ENDPOINT", web)
    return web


async def fetched(uri: str, directory: Path) -> SourceDescription:
    source = open_source(uri)
    description = await source.describe()
    seen: list[int] = []
    await fetch(source, description, directory, parallelism=4, on_bytes=seen.append)
    assert sum(seen) == description.source_bytes
    return description


def same_bytes(folder: Path, directory: Path, names: set[str]) -> None:
    found = {str(path.relative_to(directory)) for path in files_in(directory)}
    assert {name for name in found if not name.startswith(".")} == names
    for name in names:
        assert (directory / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("uri", ["s3://models/llms/tiny", "hf://org/tiny", "{web}/plain/tiny"])
async def test_a_layout_comes_whole_and_nothing_else(
    uri: str, clouds: str, folder: Path, tmp_path: Path
) -> None:
    description = await fetched(uri.format(web=clouds), tmp_path)
    assert description.layout is Layout.HUGGING_FACE
    assert {file.name for file in description.files} == WANTED
    same_bytes(folder, tmp_path, WANTED)


async def test_one_gguf_object(clouds: str, tmp_path: Path) -> None:
    description = await fetched("s3://models/llms/one.gguf", tmp_path)
    assert description.layout is Layout.GGUF and description.source_bytes == len(WEIGHTS)
    assert (tmp_path / "one.gguf").read_bytes() == WEIGHTS


async def test_a_folder_of_this_host_has_its_pooling_too(folder: Path) -> None:
    source = open_source(folder.as_uri())
    (pooling,) = [file for file in (await source.describe()).files if "/" in file.name]
    assert pooling.name == "1_Pooling/config.json"
    read = await source.read_range(pooling, start=0, size_bytes=pooling.size_bytes)
    assert bytes(read) == (folder / pooling.name).read_bytes()


async def test_a_file_source_is_described_in_place_and_changes_with_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"one")
    uri = tmp_path.as_uri()
    first = await describe_source(uri)
    assert await describe_source(uri) == first
    assert len(first.revision) == 16 and int(first.revision, 16) >= 0
    (tmp_path / "model.safetensors").write_bytes(b"three")
    assert (await describe_source(uri)).revision != first.revision


@pytest.mark.parametrize(
    ("uri", "error", "words"),
    [
        ("s3://models/llms/only-pickle", SourceUnsupported, "pickle"),
        ("s3://models/llms/nothing-here", SourceUnreachable, "nothing"),
        ("s3://models/llms/tiny/pytorch_model.bin", SourceUnsupported, "pickle"),
        ("{web}/plain/absent", SourceUnsupported, "neither safetensors"),
        ("hf://org/absent", SourceUnreachable, "does not exist"),
        ("hf://org", SourceUnsupported, "organisation/name"),
        ("http://127.0.0.1:9/x", SourceUnreachable, "127.0.0.1:9"),
        ("ftp://host/x", SourceUnsupported, "scheme"),
        ("file:///no/such/place", SourceUnreachable, "/no/such/place"),
        ("file://host/x", SourceUnsupported, "absolute"),
        ("https://user:word@host/x", SourceUnsupported, "never a user"),
        ("s3://models/../x", SourceUnsupported, r"\.\."),
        ("https://host/x?y=z", SourceUnsupported, "queries"),
    ],
)
async def test_what_is_refused_and_in_which_words(
    uri: str, error: type[SourceError], words: str, clouds: str
) -> None:
    with pytest.raises(error, match=words) as refused:
        await describe_source(uri.format(web=clouds))
    assert "word" not in str(refused.value) or "user:word" not in str(refused.value)


async def test_wrong_credentials_say_so(clouds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(SourceUnreachable, match="credentials"):
        await describe_source("s3://models/llms/tiny")


@pytest.mark.parametrize("name", ["../up.safetensors", "/etc/passwd.safetensors", "a/b.safetensors", "x.bin"])
async def test_a_hostile_index_names_no_path(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises((SourceCorrupt, SourceUnsupported)):
        await describe_source(tmp_path.as_uri())


class Counting(Source):
    """Passes reads through to a real source, counts them, and fails after `allowed` of them."""

    def __init__(self, inner: Source, allowed: int) -> None:
        self.inner, self.allowed, self.reads = inner, allowed, 0

    async def describe(self) -> SourceDescription:
        return await self.inner.describe()

    async def read_range(self, file: SourceFile, *, start: int, size_bytes: int) -> memoryview:
        if self.reads >= self.allowed:
            raise SourceCorrupt("cut off")
        self.reads += 1
        return await self.inner.read_range(file, start=start, size_bytes=size_bytes)


async def test_a_cut_fetch_goes_on_at_the_chunk_it_reached(clouds: str, folder: Path, tmp_path: Path) -> None:
    uri = "s3://models/llms/tiny"
    description = await describe_source(uri)
    first = Counting(open_source(uri), allowed=4)
    with pytest.raises(SourceCorrupt, match="cut off"):
        await fetch(first, description, tmp_path, parallelism=1, on_bytes=lambda _: None)
    second = Counting(open_source(uri), allowed=100)
    await fetch(second, description, tmp_path, parallelism=2, on_bytes=lambda _: None)
    chunks = sum(-(-file.size_bytes // CHUNK_BYTES) for file in description.files)
    assert first.reads == 4 and second.reads == chunks - 4
    same_bytes(folder, tmp_path, WANTED)


async def test_a_torn_journal_is_not_trusted(clouds: str, folder: Path, tmp_path: Path) -> None:
    description = await fetched("s3://models/llms/tiny", tmp_path)
    journal = tmp_path / ".fetch-journal"
    journal.write_text(journal.read_text()[:-1])
    (tmp_path / "config.json").write_bytes(b"garbage")
    again = Counting(open_source("s3://models/llms/tiny"), allowed=100)
    await fetch(again, description, tmp_path, parallelism=2, on_bytes=lambda _: None)
    assert again.reads == sum(-(-file.size_bytes // CHUNK_BYTES) for file in description.files)
    same_bytes(folder, tmp_path, WANTED)
