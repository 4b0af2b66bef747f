from __future__ import annotations

import errno
import inspect
from pathlib import Path

import pytest
import torch

from neurotome import errors
from neurotome.errors import NeurotomeError, explain_system_error, is_out_of_memory, unknown


def test_every_exception_is_a_neurotome_error() -> None:
    found = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]
    assert len(found) > 1
    assert all(issubclass(kind, NeurotomeError) for kind in found)


def test_nearest_name_is_suggested() -> None:
    assert unknown("decoder", "unett", ["linknet", "unet"]) == (
        "unknown decoder 'unett'. Did you mean 'unet'? Known: linknet, unet."
    )


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert unknown("split", "xyz", ["train", "test"]) == "unknown split 'xyz'. Known: train, test."


def test_long_lists_are_cut() -> None:
    message = unknown("encoder", "??", [f"e{i}" for i in range(100)])
    assert message.endswith("e39, ... (100 in all).")


@pytest.mark.parametrize(
    "raised",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8192 bytes."),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
    ids=repr,
)
def test_too_little_memory_gets_the_hint_for_memory(raised: BaseException) -> None:
    assert "smaller --tile" in (explain_system_error(raised) or "")


def test_torchs_own_error_for_too_little_memory_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 58, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    message = explain_system_error(OSError(errno.ENOSPC, "No space left", str(tmp_path / "gone" / "a.png")))
    mount = next(folder for folder in (tmp_path, *tmp_path.parents) if folder.is_mount())
    assert message is not None
    assert message.startswith(f"{tmp_path / 'gone' / 'a.png'}: no space left on the disk at {mount}.")


def test_other_errors_of_the_system_name_their_path_and_bugs_stay_bugs() -> None:
    denied = PermissionError(errno.EACCES, "Permission denied", "/somewhere/x")
    assert explain_system_error(denied) == "/somewhere/x: Permission denied. Check the path and its permissions."
    assert explain_system_error(RuntimeError("shape '[3]' is invalid")) is None
    assert explain_system_error(ValueError("no")) is None
