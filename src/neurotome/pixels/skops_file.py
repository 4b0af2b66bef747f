"""Classifiers of scikit-learn that are kept as they are, by skops: which ones, and what their files may hold."""

from __future__ import annotations

import copy
import importlib
import io
import json
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import ModelError, NeurotomeError
from neurotome.pixels.classifiers import Arrays

PLAIN = (
    "sklearn.dummy.DummyClassifier",
    "sklearn.discriminant_analysis.QuadraticDiscriminantAnalysis",
    "sklearn.linear_model.SGDClassifier",
    "sklearn.naive_bayes.BernoulliNB",
    "sklearn.naive_bayes.GaussianNB",
)
"""Classes that are kept by skops: they predict with numpy alone, and are nothing but settings and arrays of numbers.

Others trust what they hold, as libsvm trusts the counts of its support vectors: a file that has been tampered with would
make them read beyond their memory, although skops finds nothing but scikit-learn's own types in it.
"""

_DERIVED = ("_loss_function_",)
"""Attributes that only training needs, and that are no numbers."""

_NODES = ("DictNode", "JsonNode", "ListNode", "NdArrayNode", "TupleNode", "TypeNode")
"""What skops may find in an estimator."""

_VALUES = ("dict", "list", "tuple", "str", "int", "float", "bool", "NoneType")

MOST_BYTES = 1_000_000_000
"""Unpacked size of what skops reads."""

MOST_SCHEMA = 1_000_000
"""Unpacked size of skops' description of an estimator; those of `PLAIN` have some 10 kB."""


def is_class(kind: type, path: str) -> bool:
    """Says whether a class is the one of an import path, without importing a package that the class is not of."""
    module, _, name = path.rpartition(".")
    if kind.__name__ != name or kind.__module__.split(".")[0] != path.split(".")[0]:
        return False
    return getattr(importlib.import_module(module), name, None) is kind


@dataclass(frozen=True)
class Estimator:
    """Another classifier of scikit-learn, kept as it is; one of `PLAIN`."""

    estimator: Any
    kind = "skops"

    def __post_init__(self) -> None:
        kind = type(self.estimator)
        if not any(is_class(kind, path) for path in PLAIN):
            raise ModelError(
                f"a classifier of class {kind.__module__}.{kind.__name__} cannot be kept without pickle; expected one of "
                f"{', '.join(PLAIN)}. Train with another learner."
            )

    def predict(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the estimator's own probabilities; see `Classifier`."""
        found = self.estimator.predict_proba(np.ascontiguousarray(features.T))
        return np.asarray(found, np.float32).T

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Returns the bytes that skops writes: arrays and names of types, never code.

        Raises:
            NeurotomeError: skops is not installed.
        """
        from neurotome.lazy import import_extra

        kept = copy.copy(self.estimator)
        for name in _DERIVED:
            vars(kept).pop(name, None)
        content = import_extra("skops.io", "skops").dumps(kept)
        return {"skops": np.frombuffer(content, np.uint8)}

    @classmethod
    def from_arrays(cls, arrays: Arrays, features: int, classes: int) -> Estimator:
        """Rebuilds the estimator if it is one of `PLAIN`, made of settings and arrays of numbers and of nothing else.

        Raises:
            ModelError: The file names other types.
            NeurotomeError: skops is not installed.
            ValueError: It cannot be read, or does not fit the features or classes.
        """
        from neurotome.lazy import import_extra

        skops = import_extra("skops.io", "skops")
        content = np.asarray(arrays["skops"], np.uint8).tobytes()
        _check_skops(content)
        try:
            foreign = skops.get_untrusted_types(data=content)
            if not foreign:
                found = cls(skops.loads(content, trusted=[]))
        except NeurotomeError:
            raise
        except Exception as error:  # whatever a stranger's numbers bring about
            raise ValueError(f"skops cannot read the classifier: {error}") from error
        if foreign:
            raise _refuse_types(foreign)
        if getattr(found.estimator, "n_features_in_", features) != features:
            raise ValueError(f"a classifier that is not of {features} features")
        found._try(features, classes)
        return found

    def _try(self, features: int, classes: int) -> None:
        """Predicts a few pixels of zeros, so that arrays that do not fit each other are found now."""
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                probs = self.predict(np.zeros((features, 3), np.float32))
        except Exception as error:
            raise ValueError(f"the classifier cannot predict: {error}") from error
        if probs.shape != (classes, 3) or (probs < 0).any() or not (np.abs(probs.sum(0) - 1) < 1e-3).all():
            raise ValueError(f"a classifier that does not give the probabilities of {classes} classes")


def _check_skops(content: bytes) -> None:
    """Checks what skops would build, before it builds anything.

    Raises:
        ModelError: It would build something else than one estimator of `PLAIN`.
        ValueError: It is damaged or too large.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            parts = archive.infolist()
            size = sum(part.file_size for part in parts)
            described = archive.getinfo("schema.json")
            if size > MOST_BYTES or described.file_size > MOST_SCHEMA:
                raise ValueError(f"{size} bytes when unpacked; expected at most {MOST_BYTES}")
            schema = json.loads(archive.read(described))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
        raise ValueError(f"the classifier is no file of skops: {error}") from error
    module, name = str(schema["__module__"]), str(schema["__class__"])
    known = any(path.endswith(f".{name}") and module.startswith(path.rpartition(".")[0]) for path in PLAIN)
    foreign = [] if known and schema["__loader__"] == "ObjectNode" else [f"{module}.{name}"]
    files: dict[str, set[Any]] = {}
    for node in _list_nodes(list(schema.values())):
        plain = (node["__module__"] == "builtins" and node["__class__"] in _VALUES) or (
            # an array of objects has another type than numpy
            node["__module__"] == "numpy" and node["__loader__"] == "NdArrayNode" and node["type"] == "numpy"
        )
        if not plain or node["__loader__"] not in _NODES:
            foreign.append(f"{node['__module__']}.{node['__class__']}")
        if "file" in node:
            files.setdefault(str(node["file"]), set()).add(node.get("__id__"))
    if foreign:
        raise _refuse_types(foreign)
    if any(len(found) > 1 or None in found for found in files.values()):  # one that skops reads once has one id
        raise ValueError("arrays that are read more than once")


def _list_nodes(content: Any) -> Iterator[Mapping[str, Any]]:
    """Yields every object that a schema of skops describes, the outermost first."""
    if isinstance(content, dict):
        if "__loader__" in content:
            yield content
        content = list(content.values())
    if isinstance(content, list):
        for part in content:
            yield from _list_nodes(part)


def _refuse_types(foreign: Sequence[str]) -> ModelError:
    named = ", ".join(list(dict.fromkeys(foreign))[:5])
    return ModelError(
        f"the classifier is made of types that are not allowed, {named}, so it was not loaded: "
        "loading them could run code or read memory that is not theirs. Use a model whose classifier is one of "
        f"{', '.join(PLAIN)}, or one that is saved as its numbers."
    )
