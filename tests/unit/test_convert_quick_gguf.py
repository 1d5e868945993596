"""The converter's quick GGUF reader says what gguf's own says."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from gpu_worker.convert.quick_gguf import QuickReader, quick_reader


def write(path: Path, *, words: int) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_token_list([f"word-{index}" for index in range(words)])
    writer.add_token_scores([index / 7 for index in range(words)])
    writer.add_tensor("blk.0.attn_q.weight", np.arange(96, dtype=np.float32).reshape(8, 12))
    writer.add_tensor("blk.1.attn_q.weight", np.arange(64, dtype=np.float16).reshape(4, 16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_fields_and_tensors_are_those_of_the_slow_reader(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", words=50)
    slow, quick = gguf.GGUFReader(path), QuickReader(path)
    assert list(quick.fields) == list(slow.fields)
    for name, field in slow.fields.items():
        assert quick.fields[name].contents() == field.contents()
        assert quick.fields[name].types == field.types
    assert [tensor.name for tensor in quick.tensors] == [tensor.name for tensor in slow.tensors]
    for one, other in zip(quick.tensors, slow.tensors, strict=True):
        assert one.tensor_type == other.tensor_type
        assert np.array_equal(one.data, other.data)


def test_a_file_is_read_once_and_a_changed_one_again(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", words=3)
    first = quick_reader(path)
    assert quick_reader(str(path)) is first
    write(path, words=4)
    assert len(quick_reader(path).fields["tokenizer.ggml.tokens"].contents()) == 4
