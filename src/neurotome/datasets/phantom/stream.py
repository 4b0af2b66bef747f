"""phantom-stream: synthetic tissue made while a network trains on it, so that it never sees the same twice for long.

Training draws from a pool of cutouts in which the oldest is replaced by a new one every few steps. Which cutouts a
step draws from depends on the seed and the step alone, not on how many processes make them or how fast, so
that a run that was stopped goes on with the same tissue.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from neurotome.classes import ClassSet
from neurotome.datasets.base import Cutout, CutoutSource, Dataset
from neurotome.datasets.phantom.like import Appearance, draw_like, read_appearance
from neurotome.datasets.phantom.make import CITATION, CLASSES, LICENCE, Pair, make_cutout, wrap_cutout
from neurotome.datasets.phantom.regions import INSTRUMENT, REGIONS, draw_instrument, draw_region
from neurotome.datasets.phantom.traced import make_traced, read_maps
from neurotome.errors import SettingsError
from neurotome.io.picked import PickedSlices
from neurotome.progress import track

TRAIN, HELD_OUT, REPLAY = 0, 1, 2  # random streams

REPLAYED = 120
"""Slices of synthetic tissue that fine-tuning sees again."""

CHECKED = 16
"""Slices of other synthetic tissue by which it is told what fine-tuning has forgotten."""


@dataclass(frozen=True)
class StreamSettings:
    """How synthetic tissue is made during training (dataset phantom-stream only)."""

    seed: int = 0
    """Same seed, same tissue at the same step, however many workers make it."""

    pool: int = 160
    """Cutouts that patches are drawn from at a time."""

    start: int = 24
    """Cutouts that are made before the first step; the pool grows from there."""

    every: int = 6
    """Steps after which a new cutout enters the pool."""

    edge: int = 256
    """Voxels along y and x of a cutout."""

    depth: int = 8
    """Slices of a cutout."""

    faithful: float = 0.15
    """Share of cutouts with the measured numbers; those of the others are drawn from ranges around them."""

    maps: str = ""
    """An .npz file of label maps that people drew, uint8 (n, y, x) per region of the phantom (cortex, striatum, vp, zi);
    some cutouts then have their geometry, painted with synthetic grey values. Their slices have no neighbours: only for
    networks that see one slice."""

    traced: float = 0.6
    """Share of cutouts that are painted from `maps`, if there are any."""

    like: str = ""
    """An image, or a folder of them, that the tissue shall look like, see `neurotome phantom --like`; no labels are needed.
    What is painted from `maps` keeps the phantom's own appearance."""

    held_out: int = 12
    """Slices of other tissue in each of the splits val and test."""

    held_out_depth: int = 1
    """Slices of these that are made, an odd number; the one in the middle is labelled. At least as many as the network
    sees (model.in_channels)."""

    workers: int = 1
    """Processes that make cutouts beside training; 0: training makes its own and waits for them."""


def open_stream(settings: StreamSettings = StreamSettings()) -> Dataset:
    """Opens the stream as a dataset: the first cutouts as split train, other tissue as val and test.

    Raises:
        SettingsError: A setting is out of range.
        ImageError: The images of `like` cannot be measured.
    """
    if min(settings.pool, settings.start, settings.every, settings.depth, settings.held_out) < 1 or settings.edge < 32:
        raise SettingsError(
            f"stream.pool is {settings.pool}, start {settings.start}, every {settings.every}, depth {settings.depth}, "
            f"held_out {settings.held_out} (at least 1 each), edge {settings.edge} (at least 32)."
        )
    if not 0 <= settings.faithful <= 1 or settings.seed < 0 or settings.workers < 0 or settings.start > settings.pool:
        raise SettingsError(
            f"stream.faithful is {settings.faithful} (0 to 1), seed {settings.seed} and workers {settings.workers} (0 or "
            f"more), start {settings.start} (at most the pool, {settings.pool})."
        )
    if settings.held_out_depth < 1 or settings.held_out_depth % 2 == 0:
        raise SettingsError(f"stream.held_out_depth is {settings.held_out_depth}; expected an odd number (1, 3, 5, ...).")
    if not 0 <= settings.traced <= 1:
        raise SettingsError(f"stream.traced is {settings.traced}; expected a share from 0 to 1.")
    if settings.maps:
        read_maps(Path(settings.maps))
    stream = PhantomStream(settings, read_appearance([settings.like]) if settings.like else None)
    held_out = stream.make_held_out()
    splits = {
        "train": tuple(cutout for _, cutout in stream.window(0)),
        "val": held_out[: settings.held_out],
        "test": held_out[settings.held_out :],
    }
    citation = CITATION.format(seed=settings.seed)
    return Dataset("phantom-stream", ClassSet(CLASSES), splits, LICENCE, citation, source=stream)


def open_replay(dataset: Dataset, edge: int, depth: int, seed: int) -> CutoutSource:
    """Makes synthetic tissue that is seen among other data.

    A network that was trained on synthetic tissue forgets what a few patches do not show, such as white matter; seeing
    some of it again keeps it (rehearsal, Robins 1995, doi:10.1080/09540099550039318).

    Args:
        dataset: The other data.
        edge: Edge of the synthetic slices in pixels, at least that of a patch.
        depth: Slices of each, one per input channel.
        seed: Same seed, same tissue.

    Raises:
        SettingsError: The dataset's classes are not those of the phantom, or it is synthetic already.
    """
    if dataset.classes.names != CLASSES or dataset.source is not None:
        made = " and is made of tissue already" if dataset.source is not None else ""
        raise SettingsError(
            f"train.replay is above 0, but {dataset.name} has the classes {', '.join(dataset.classes.names)}{made}; "
            f"synthetic tissue can only be added to other data with the classes {', '.join(CLASSES)}. Use --train.replay 0."
        )
    return CutoutSource(_make_replayed(max(edge, 32), depth, seed, REPLAYED))


@functools.lru_cache(maxsize=1)  # several trainings on the same patches see the same tissue
def _make_replayed(edge: int, depth: int, seed: int, count: int) -> tuple[Cutout, ...]:
    settings = StreamSettings(seed=seed, edge=edge, faithful=0.5)
    numbers = track(range(count), "making tissue to replay", count, "slices")
    return tuple(wrap_cutout(make_piece(settings, REPLAY, n, depth), f"tissue_{n:03d}") for n in numbers)


def make_checked(depth: int, seed: int) -> tuple[Cutout, ...]:
    """Makes synthetic tissue that no training sees, each of so many slices, to be scored before and after fine-tuning."""
    settings = StreamSettings(seed=seed, faithful=0.5)
    numbers = track(range(CHECKED), "making tissue to check", CHECKED, "slices")
    return tuple(wrap_cutout(make_piece(settings, HELD_OUT, n, depth), f"checked_{n:03d}") for n in numbers)


class PhantomStream(CutoutSource):
    """The pool of cutouts, and the processes that fill it."""

    def __init__(self, settings: StreamSettings, appearance: Appearance | None = None) -> None:
        self.settings = settings
        self.appearance = appearance
        self._waited_seconds = 0.0
        self._cutouts: dict[int, Cutout] = {}
        self._coming: dict[int, Callable[[], Pair]] = {}
        self._executor: ProcessPoolExecutor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_coming": {}, "_executor": None}  # another process has its own

    @property
    def facts(self) -> Mapping[str, Any]:
        """How long training has waited for tissue after its first step."""
        return {"seconds_waited_for_tissue": round(self._waited_seconds, 3)}

    def window(self, step: int) -> list[tuple[int, Cutout]]:
        """Returns the cutouts, with their numbers, from which a step draws; makes those that are missing."""
        newest = self.settings.start + step // self.settings.every
        oldest = max(0, newest - self.settings.pool)
        self._cutouts = {n: cutout for n, cutout in self._cutouts.items() if oldest <= n < newest}
        self._coming = {n: wait for n, wait in self._coming.items() if n >= oldest}
        missing = [n for n in range(oldest, newest) if n not in self._cutouts]
        ahead = range(newest, newest + 4 * self.settings.workers)
        for number in [*missing, *ahead]:
            if number not in self._coming:
                self._coming[number] = self._order(TRAIN, number, self.settings.depth)
        began, many = time.monotonic(), len(missing) > 4
        for number in track(missing, "making tissue", len(missing), "cutouts") if many else missing:
            self._cutouts[number] = wrap_cutout(self._coming.pop(number)(), f"tissue_{number:06d}")
        if step > 0 and not many:
            self._waited_seconds += time.monotonic() - began
        return [(n, self._cutouts[n]) for n in range(oldest, newest)]

    def make_held_out(self) -> tuple[Cutout, ...]:
        """Returns slices of tissue from which no training cutout is cut: half for val, half for test."""
        depth = self.settings.held_out_depth
        coming = [self._order(HELD_OUT, n, depth) for n in range(2 * self.settings.held_out)]
        made = [wrap_cutout(wait(), f"held_out_{n:03d}") for n, wait in enumerate(coming)]
        return tuple(made) if depth == 1 else tuple(map(_pick_middle, made))

    def _order(self, stream: int, number: int, depth: int) -> Callable[[], Pair]:
        """Lets a worker make a cutout and returns what waits for it; without workers, what makes it."""
        if not self.settings.workers:
            return functools.partial(make_piece, self.settings, stream, number, depth, self.appearance)
        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                self.settings.workers, multiprocessing.get_context("spawn"), _start_worker, (os.getpid(),)
            )
        return self._executor.submit(make_piece, self.settings, stream, number, depth, self.appearance).result


def _pick_middle(cutout: Cutout) -> Cutout:
    """Returns the slice in the middle of a cutout, which keeps its neighbours as those of a volume do."""
    volume, middle = cutout.volume, cutout.volume.shape[0] // 2
    picked = PickedSlices(volume.data, np.array([middle]), Path(volume.name))
    return Cutout(replace(volume, data=picked), cutout.labels[middle : middle + 1])


def make_piece(settings: StreamSettings, stream: int, number: int, depth: int, appearance: Appearance | None = None) -> Pair:
    """Makes cutout `number` of a random stream; its voxels depend on nothing but the arguments."""
    rng = np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=(stream, number)))
    if settings.maps and rng.random() < settings.traced:
        return make_traced(read_maps(Path(settings.maps)), depth, settings.edge, rng)
    region, instrument = REGIONS[list(REGIONS)[rng.integers(len(REGIONS))]], INSTRUMENT
    if rng.random() >= settings.faithful:
        region, instrument = draw_region(region, rng), draw_instrument(rng)
    if appearance is not None:
        region, instrument = draw_like(appearance, region, instrument, rng)
    return make_cutout(region, instrument, (depth, settings.edge, settings.edge), rng)


def _start_worker(parent: int) -> None:
    """Lets training go first, leaves Ctrl-C to it, and ends when it has been killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(5)

    def watch(_: Any = None) -> None:
        while os.getppid() == parent:
            time.sleep(2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
