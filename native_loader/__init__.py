"""Firstlight's checkpoint loader, usable alone.

Promises: what was saved is loaded bit for bit or not at all; a disk is read at its own speed, past the page
cache; memory is handed to other processes without a copy. Knows nothing of models, hosts or workflows, and
imports torch only inside of the functions that make or take tensors.
"""

from __future__ import annotations

from native_loader._native import (
    Arena,
    ArenaView,
    CudaDriver,
    GpuChunk,
    GpuCopyJob,
    GpuCopyReport,
    GpuDevice,
    GpuFacts,
    GpuMemory,
    GpuPinning,
    LoadJob,
    LoadReport,
    PartitionSummary,
    PartitionWriter,
    ProgressBoard,
    Segment,
    crc32c,
    crc32c_implementation,
    has_ordered_products,
    multiply_in_order,
)
from native_loader.execution_order import execution_order
from native_loader.loading import Loading
from native_loader.manifest import FileEntry, Manifest, PartitionEntry, TensorEntry, parse_manifest
from native_loader.reader import Checkpoint, open_checkpoint
from native_loader.safetensors_header import SafetensorsHeader, SourceTensor, parse_header
from native_loader.safetensors_loading import SafetensorsModel, load_safetensors, open_safetensors
from native_loader.safetensors_source import SafetensorsFile
from native_loader.standalone import begin_load, load_into, load_state_dict, save_checkpoint
from native_loader.temporary_directory import remove_leftovers
from native_loader.verification import Damage, find_damage, verify
from native_loader.writer import CheckpointWriter, StorageMember

__all__ = [
    "Arena",
    "ArenaView",
    "Checkpoint",
    "CheckpointWriter",
    "CudaDriver",
    "Damage",
    "FileEntry",
    "GpuChunk",
    "GpuCopyJob",
    "GpuCopyReport",
    "GpuDevice",
    "GpuFacts",
    "GpuMemory",
    "GpuPinning",
    "LoadJob",
    "LoadReport",
    "Loading",
    "Manifest",
    "PartitionEntry",
    "PartitionSummary",
    "PartitionWriter",
    "ProgressBoard",
    "SafetensorsFile",
    "SafetensorsHeader",
    "SafetensorsModel",
    "Segment",
    "SourceTensor",
    "StorageMember",
    "TensorEntry",
    "begin_load",
    "crc32c",
    "crc32c_implementation",
    "execution_order",
    "find_damage",
    "has_ordered_products",
    "load_into",
    "load_safetensors",
    "load_state_dict",
    "multiply_in_order",
    "open_checkpoint",
    "open_safetensors",
    "parse_header",
    "parse_manifest",
    "remove_leftovers",
    "save_checkpoint",
    "verify",
]
