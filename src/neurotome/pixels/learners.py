"""Learners: scikit-learn and LightGBM train; what they have learned comes out as a `Classifier`."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import NeurotomeError, SettingsError, unknown
from neurotome.lazy import import_extra
from neurotome.pixels.classifiers import Classifier
from neurotome.pixels.convert import convert, find_form, from_logistic, list_savable
from neurotome.pixels.predictor import count_cores
from neurotome.pixels.skops_file import is_class
from neurotome.pixels.trees import from_boosting, from_forest, from_lightgbm

LEARNERS = ("rf", "lr", "gbdt")


@dataclass(frozen=True)
class ForestSettings:
    """How a random forest is grown."""

    trees: int = 24
    """Number of trees."""

    max_depth: int | None = None
    """Depth at which trees stop growing; without limit if not given."""

    min_leaf: int = 10
    """Training pixels a leaf holds at least; more makes smaller, faster trees and smoother probabilities."""

    def __post_init__(self) -> None:
        _check_positive("forest", self, ("trees", "max_depth", "min_leaf"))


@dataclass(frozen=True)
class BoostingSettings:
    """How gradient boosted trees are grown."""

    rounds: int = 60
    """Trees per class."""

    leaves: int = 31
    """Leaves of a tree at most."""

    rate: float = 0.15
    """Learning rate: how much a tree adds."""

    engine: Literal["auto", "lightgbm", "sklearn"] = "auto"
    """auto: LightGBM where it is installed, otherwise scikit-learn's histogram booster."""

    def __post_init__(self) -> None:
        _check_positive("boosting", self, ("rounds", "leaves", "rate"))
        if self.leaves < 2:
            raise SettingsError(f"boosting.leaves is {self.leaves}; expected at least 2.")
        if self.engine not in ("auto", "lightgbm", "sklearn"):
            raise SettingsError(unknown("boosting.engine", self.engine, ("auto", "lightgbm", "sklearn")))


@dataclass(frozen=True)
class LogisticSettings:
    """How a logistic regression is fitted."""

    strength: float = 1.0
    """Inverse of the penalty on large weights."""

    steps: int = 300
    """Steps of the solver at most."""

    def __post_init__(self) -> None:
        _check_positive("logistic", self, ("strength", "steps"))


@dataclass(frozen=True)
class Learner:
    """What trains a classifier.

    Attributes:
        name: What it is, for people.
        train: Takes features, float32 (pixels, features), classes 0, 1, ... (pixels,), and a weight per pixel.
        tables: What training holds at most of the size of the table of features, in such tables, that table included.
        pixel_bytes: What it holds of a pixel besides, whatever the features: classes, weights, scores, nodes of trees.
        weighs: Whether it heeds the weights of pixels.
        stream: Makes what learns from one part after another, where it can.
    """

    name: str
    train: Callable[[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64]], Classifier]
    tables: float
    pixel_bytes: float
    weighs: bool = True
    stream: Callable[[int], Stream] | None = None

    def count_bytes(self, features: int) -> float:
        """Returns the bytes that training holds per pixel, as measured on trees of real images."""
        return 4 * features * self.tables + self.pixel_bytes


@dataclass
class Stream:
    """An estimator that learns part by part; `origin` says for people where it came from."""

    estimator: Any
    classes: int
    weighs: bool
    origin: str

    def learn(self, table: NDArray[np.float32], labels: NDArray[np.int64], weights: NDArray[np.float64]) -> None:
        """Learns from a part; `labels` are 0, 1, ...

        Raises:
            NeurotomeError: The estimator refuses the part or its own options.
        """
        more = {"sample_weight": weights} if self.weighs else {}
        with _explain_failure(self.origin):
            self.estimator.partial_fit(table, labels, classes=np.arange(self.classes), **more)

    def finish(self) -> Classifier:
        """Returns what was learned."""
        return convert(self.estimator)


def choose_learner(
    name: str,
    seed: int,
    forest: ForestSettings,
    boosting: BoostingSettings,
    logistic: LogisticSettings,
    options: Mapping[str, Any],
) -> Learner:
    """Returns the learner of a name.

    Args:
        name: rf, lr, gbdt, or the import path of a scikit-learn classifier.
        seed: Seed of what it draws.
        forest: Settings of rf.
        boosting: Settings of gbdt.
        logistic: Settings of lr.
        options: Arguments of a classifier named by import path.

    Raises:
        SettingsError: The name is not known or the class cannot serve.
        NeurotomeError: An extra is missing; the message gives the command.
    """
    if name not in LEARNERS and "." not in name:
        raise SettingsError(unknown("learner", name, LEARNERS) + " Or give the import path of a scikit-learn classifier.")
    if name in LEARNERS and options:
        raise SettingsError(f"options are for a learner named by import path; {name} has settings of its own.")
    if name == "rf":
        return _make_forest(seed, forest)
    if name == "lr":
        return _make_logistic(seed, logistic)
    if name == "gbdt":
        have = importlib.util.find_spec("lightgbm") is not None
        if boosting.engine == "lightgbm" or (boosting.engine == "auto" and have):
            return _make_lightgbm(seed, boosting)
        return _make_boosting(seed, boosting)
    return _import_learner(name, seed, options)


def _make_forest(seed: int, settings: ForestSettings) -> Learner:
    """Returns a random forest; Breiman (2001), doi:10.1023/A:1010933404324."""

    def train(table: NDArray[np.float32], labels: NDArray[np.int64], weights: NDArray[np.float64]) -> Classifier:
        from sklearn.ensemble import RandomForestClassifier

        forest = RandomForestClassifier(
            settings.trees,
            max_depth=settings.max_depth,
            min_samples_leaf=settings.min_leaf,
            random_state=seed,
            n_jobs=count_cores(),
        )
        return from_forest(forest.fit(table, labels, weights))

    # about 13 bytes a tree for its nodes: one node for eighteen pixels, as scikit-learn's and as ours
    return Learner("random forest", train, 1.0, 200 + 13 * settings.trees * 10 / settings.min_leaf)


def _make_logistic(seed: int, settings: LogisticSettings) -> Learner:
    """Returns a multinomial logistic regression on standardised features."""

    def train(table: NDArray[np.float32], labels: NDArray[np.int64], weights: NDArray[np.float64]) -> Classifier:
        from sklearn.linear_model import LogisticRegression
        from threadpoolctl import threadpool_limits

        mean, std = table.mean(0, dtype=np.float64), table.std(0, dtype=np.float64)
        std[std == 0] = 1
        found = LogisticRegression(C=settings.strength, max_iter=settings.steps, random_state=seed)
        scaled = table - mean.astype(np.float32)
        scaled /= std.astype(np.float32)
        # hundreds of small products: threads would spend more time waiting for each other than multiplying
        with threadpool_limits(1, "blas"):
            found.fit(scaled, labels, weights)
        return from_logistic(found, mean, std)

    return Learner("logistic regression", train, 2.0, 200)


def _make_lightgbm(seed: int, settings: BoostingSettings) -> Learner:
    """Returns gradient boosted trees of LightGBM; Ke et al. (2017), NeurIPS 30.

    Raises:
        NeurotomeError: LightGBM is not installed.
    """
    lightgbm = import_extra("lightgbm", "gbm")

    def train(table: NDArray[np.float32], labels: NDArray[np.int64], weights: NDArray[np.float64]) -> Classifier:
        classes = int(labels.max()) + 1
        chosen = {
            "objective": "multiclass",
            "num_class": classes,
            "num_leaves": settings.leaves,
            "learning_rate": settings.rate,
            "seed": seed,
            "deterministic": True,
            "force_row_wise": True,  # otherwise it times both ways first, and which wins changes the sums
            "num_threads": count_cores(),
            "verbosity": -1,
        }
        data = lightgbm.Dataset(table, labels, weight=weights)
        return from_lightgbm(lightgbm.train(chosen, data, settings.rounds).dump_model(), table.shape[1], classes)

    return Learner("gradient boosted trees (LightGBM)", train, 2.25, 120)


def _make_boosting(seed: int, settings: BoostingSettings) -> Learner:
    """Returns gradient boosted trees of scikit-learn."""

    def train(table: NDArray[np.float32], labels: NDArray[np.int64], weights: NDArray[np.float64]) -> Classifier:
        from sklearn.ensemble import HistGradientBoostingClassifier

        found = HistGradientBoostingClassifier(
            max_iter=settings.rounds,
            max_leaf_nodes=settings.leaves,
            learning_rate=settings.rate,
            early_stopping=False,
            random_state=seed,
        )
        return from_boosting(found.fit(table, labels, weights))

    return Learner("gradient boosted trees (scikit-learn)", train, 3.5, 180)


def _import_learner(path: str, seed: int, options: Mapping[str, Any]) -> Learner:
    """Returns a classifier of scikit-learn's kind by its import path, such as sklearn.naive_bayes.GaussianNB."""
    kind = _import_class(path)
    boosts = is_class(kind, "lightgbm.LGBMClassifier")
    known = {
        name: parameter.default
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    for option in options:
        if option not in known:
            raise SettingsError(unknown(f"option of {kind.__name__}", option, sorted(known)))
    given = {option: _read_option(value, known[option]) for option, value in options.items()}
    if boosts:
        _check_lightgbm_options(path, given)
    more = {key: value for key, value in {"random_state": seed, "n_jobs": count_cores()}.items() if key in known}
    if boosts:
        more |= {"deterministic": True, "force_row_wise": True, "verbosity": -1}  # as for gbdt
    try:
        estimator: Any = kind(**{**more, **given})
    except (TypeError, ValueError) as error:
        raise SettingsError(f"learner {path!r} cannot be built with {dict(options)}: {error}.") from error
    if not hasattr(estimator, "predict_proba"):
        raise SettingsError(
            f"learner {path!r} has no predict_proba with these options, and every method here gives class "
            f"probabilities. Choose an option that has it (loss=log_loss), or one of {', '.join(LEARNERS)}."
        )
    if find_form(kind) is None:
        import_extra("skops.io", "skops")  # before training, not after it
    weighs = "sample_weight" in inspect.signature(estimator.fit).parameters
    origin = f"learner {path!r} with {dict(options)}"

    def train(table: NDArray[np.float32], labels: NDArray[np.int64], weights: NDArray[np.float64]) -> Classifier:
        with _explain_failure(origin):
            estimator.fit(table, labels, **({"sample_weight": weights} if weighs else {}))
        return convert(estimator)

    def stream(classes: int) -> Stream:
        heeds = "sample_weight" in inspect.signature(estimator.partial_fit).parameters
        return Stream(estimator, classes, heeds, origin)

    # of others nothing is known: twice copied, and as much besides as a forest
    return Learner(kind.__name__, train, 3.0, 200, weighs, stream if hasattr(estimator, "partial_fit") else None)


def _import_class(path: str) -> Any:
    """Returns the class of an import path.

    Raises:
        SettingsError: It cannot be imported, is no classifier, or could not be saved once it is trained.
    """
    module, _, name = path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:  # the last two: '.svm', '..svm'
        raise SettingsError(
            f"learner {path!r} cannot be imported ({error}); expected {', '.join(LEARNERS)}, or the import path of a "
            "scikit-learn classifier such as sklearn.naive_bayes.GaussianNB."
        ) from error
    if not inspect.isclass(kind) or not hasattr(kind, "fit") or not hasattr(kind, "get_params"):
        raise SettingsError(f"learner {path!r} is no scikit-learn classifier: it lacks fit or get_params. Name a class.")
    if not any(is_class(kind, savable) for savable in list_savable()):
        raise SettingsError(
            f"learner {path!r} could not be saved without pickle once it is trained. Choose one of {', '.join(LEARNERS)}, "
            f"{', '.join(list_savable())}."
        )
    return kind


def _read_option(value: Any, default: Any) -> Any:
    """Returns an option as its class takes it: on the command line true and false are text."""
    truths = {"true": True, "false": False}
    return truths.get(value.lower(), value) if isinstance(default, bool) and isinstance(value, str) else value


def _check_lightgbm_options(path: str, options: Mapping[str, Any]) -> None:
    """Refuses what makes other scores of LightGBM's trees than their sum, or other probabilities than a softmax."""
    for option, allowed in {"objective": ("binary", "multiclass"), "boosting_type": ("gbdt", "dart")}.items():
        if options.get(option, allowed[0]) not in allowed:
            raise SettingsError(
                f"learner {path!r} with {option} {options[option]!r} could not be saved; expected {' or '.join(allowed)}."
            )


@contextlib.contextmanager
def _explain_failure(origin: str) -> Iterator[None]:
    """Lets what an estimator finds wrong with its options or with the pixels be met with where it came from."""
    lightgbm = sys.modules.get("lightgbm")
    own = (lightgbm.basic.LightGBMError,) if lightgbm else ()
    try:
        yield
    except (TypeError, ValueError, ArithmeticError, *own) as error:
        raise NeurotomeError(f"{origin} cannot be trained on these pixels: {error}") from error


def _check_positive(group: str, settings: Any, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise SettingsError(f"{group}.{name} is {value}; expected more than 0.")
