from __future__ import annotations

import inspect

from neurotome import errors
from neurotome.errors import NeurotomeError, unknown


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
