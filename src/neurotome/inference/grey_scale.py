"""On which grey scale images are predicted: their own, that of the folder in which they lie, or that of a reference."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from neurotome.errors import ImageError, SettingsError
from neurotome.inference.volume_job import find_extremes, flip_grey
from neurotome.normalize import Normalization, Scale
from neurotome.predictor import Predictor
from neurotome.reference import describe_misfit, list_reference, measure_reference
from neurotome.resampling import choose_factors
from neurotome.shared_scale import OWN, describe_scale, look_at, note_alone, share_scales
from neurotome.volume import Volume

Source = Path | Volume
Flips = Mapping[str, tuple[float, float]]
"""By dtype, between which grey values images of one scan are flipped whose contrast is inverted."""


@dataclass(frozen=True)
class GreyScales:
    """The grey scale of every image of a call.

    Attributes:
        shared: Of those files that share one.
        reference: What was measured over a reference, None without one.
        flips: For inverted images.
    """

    shared: Mapping[Path, Scale]
    reference: Normalization | None
    flips: Flips

    def prepare(self, volume: Volume) -> Volume:
        """Flips a volume if that was asked for."""
        ends = self.flips.get(volume.data.dtype.name) or (find_extremes(volume) if self.flips else None)
        return flip_grey(volume, *ends) if ends else volume

    def choose(self, source: Source, volume: Volume) -> Scale | None:
        """Returns an image's scale, None for its own; warns where it does not fit the reference."""
        if self.reference is None:
            return self.shared.get(source) if isinstance(source, Path) else None
        if why := describe_misfit(self.reference, volume):
            warnings.warn(why, stacklevel=3)
        return self.reference.reference


def measure_scales(
    predictor: Predictor,
    sources: Sequence[Source],
    read: Callable[[Source], Volume],
    *,
    reference: str = "",
    invert: bool = False,
) -> GreyScales:
    """Measures the grey scale over all images of a call, or over a reference, and says what was done.

    Args:
        predictor: Whose input is scaled.
        sources: All images, also those that are done already, so that a folder that is gone on with has the same scale.
        read: Opens one.
        reference: Image or folder; own: each image by itself.
        invert: Whether to flip the grey values, of all images between the same two.

    Raises:
        SettingsError: The model scales grey values in another way.
        ImageError: The reference is none.
    """
    normalization, named = predictor.normalization, reference if reference != OWN else ""
    if reference and normalization.mode != "tissue":
        raise SettingsError(
            f"--reference {reference}: the model scales grey values by {normalization.mode!r}, not by what images show; "
            "expected a model trained with --train.normalization tissue. Leave it out."
        )
    images = list_reference(named) if named else []
    flips = _find_flips([*sources, *images], read) if invert else {}

    def prepare(source: Source) -> Volume:
        return GreyScales({}, None, flips).prepare(read(source))

    def prepare_reference(image: Path) -> Volume:
        volume = prepare(image)
        choose_factors(volume, "z", predictor.voxel_size_um)
        return volume

    if images:
        measured = measure_reference(images, prepare_reference)
        assert measured.reference is not None
        _say(f"grey scale: {describe_scale(measured.reference)}.")
        return GreyScales({}, measured, flips)
    if reference == OWN or normalization.alone or normalization.mode != "tissue":
        return GreyScales({}, None, flips)
    if len(sources) == 1:
        if normalization.reference is None and (note := note_alone(read(sources[0]))):
            _say(note)
        return GreyScales({}, None, flips)
    readable, greys = [], []
    for source in sources:
        with contextlib.suppress(ImageError):  # it is named when its turn comes
            greys.append(look_at(prepare(source), len(sources)))
            readable.append(source)
    shared = share_scales(normalization, greys)
    for sentence in shared.said:
        _say(sentence)
    pairs = zip(readable, shared.scales, strict=True)
    return GreyScales({path: scale for path, scale in pairs if isinstance(path, Path) and scale}, None, flips)


def _find_flips(sources: Sequence[Source], read: Callable[[Source], Volume]) -> Flips:
    flips: dict[str, tuple[float, float]] = {}
    for source in sources:
        with contextlib.suppress(ImageError):
            volume = read(source)
            ends, dtype = find_extremes(volume), volume.data.dtype.name
            known = flips.get(dtype, ends)
            flips[dtype] = min(ends[0], known[0]), max(ends[1], known[1])
    return flips


def _say(sentence: str) -> None:
    sys.stderr.write(f"note: {sentence}\n")
    sys.stderr.flush()
