"""How a volume is cut for a predictor: tiles as large as memory allows, because halos are what costs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any, Literal, NamedTuple

from neurotome.blocks import Box, Grid, Triple
from neurotome.errors import SettingsError, unknown
from neurotome.predictor import Predictor
from neurotome.resampling import PLANE, choose_factors, count_resampled, find_needed
from neurotome.volume import SIZE_TOLERANCE, Volume

AXES = ("z", "y", "x", "zyx")
"""Along which planes are predicted; the last: along all three, with averaged probabilities."""

EDGE = 64
"""Tiles are multiples of this where a person does not say otherwise, so that a store finds chunks that divide them."""

BATCH, BATCH_GPU = 1 << 20, 1 << 23
"""Pixels of a forward pass below which several planes go in at once; a GPU waits for Python between two passes."""

PASSES_GPU = 2
"""Forward passes on a GPU at once: one is sent while the other is computed."""

MOST_PLANES = 8
"""Planes of a forward pass."""

MOST_PIXELS = 1 << 24
"""Pixels of a forward pass, unless a person asks for more: halos cost little then, and libraries for convolutions have
limits at 2^31 values."""

USUAL_BLOCK = 1 << 26
"""Voxels of a block that are aimed at; twice as many where the input's chunks are then decoded once only."""

FEWEST_BLOCKS = 16
"""Blocks that a volume has at least, if it has as many tiles: for several workers, and so that a killed job loses little."""


class Span(NamedTuple):
    """A tile along one axis of its plane.

    Attributes:
        read: What is read, in pixels of the volume.
        model_read: The same at the model's voxel size.
        model_core: What the tile's own pixels depend on after prediction, at the model's voxel size.
        model_size: Pixels of a whole line at the model's voxel size.
    """

    read: slice
    model_read: slice
    model_core: slice
    model_size: int


@dataclass(frozen=True)
class Geometry:
    """How a volume is predicted: what is computed together, and what is read for it.

    Attributes:
        axes: One of `AXES`.
        grid: Tiles and blocks. A tile is always computed alike, whatever asks for it.
        halo: Pixels read around a tile's core within its planes, of the model's size.
        stride: Reads begin at multiples of this many pixels of the model.
        reach: Neighbouring planes on either side that are read as channels.
        planes: Planes of a forward pass.
        margin: Neighbouring planes on either side that what sees volumes reads as planes; 0: planes are seen one by one.
        factors: For each of `axes`, how many pixels of the model a pixel is, in rows and columns; 1 where not resampled.
    """

    axes: str
    grid: Grid
    halo: int
    stride: int
    reach: int = 0
    planes: int = 1
    factors: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    margin: int = 0

    @property
    def is_resampled(self) -> bool:
        """Whether planes are brought to another voxel size."""
        return any(factor != 1 for pair in self.factors for factor in pair)

    def list_axes(self) -> list[tuple[str, tuple[float, float]]]:
        """Returns the axes, each with its factors."""
        return list(zip(self.axes, self.factors, strict=True))

    def plan_span(self, core: slice, d: int, factor: float) -> Span:
        """Plans a tile along axis `d` (0: z) of its plane, as `plan_span` does."""
        return plan_span(core, self.grid.shape_zyx[d], factor, self.halo, self.stride)

    def read_box(self, core: Box) -> Box:
        """Returns all that must be read for a box, whose own tiles need no more."""
        needed = [[span] for span in core]
        for axis, factors in self.list_axes():
            along, *plane = PLANE[axis]
            depth, beside = self.grid.shape_zyx[along], self.reach + self.margin
            needed[along].append(slice(max(0, core[along].start - beside), min(depth, core[along].stop + beside)))
            for d, factor in zip(plane, factors, strict=True):
                needed[d].append(self.plan_span(core[d], d, factor).read)
        z, y, x = (slice(min(s.start for s in spans), max(s.stop for s in spans)) for spans in needed)
        return z, y, x

    def covers_planes(self) -> bool:
        """Says whether every tile is as large as its planes, so that there are no seams."""
        grid = self.grid
        return all(grid.tile_zyx[d] >= grid.shape_zyx[d] for axis in self.axes for d in PLANE[axis][1:])

    def to_json(self) -> dict[str, Any]:
        """Returns the fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Geometry:
        """Rebuilds a Geometry from its fields."""
        grid = Grid(*(_triple(content["grid"][name]) for name in ("shape_zyx", "tile_zyx", "block_zyx")))
        factors = tuple((float(rows), float(columns)) for rows, columns in content["factors"])
        return cls(**{**content, "grid": grid, "factors": factors})


def plan_span(core: slice, size: int, factor: float, halo: int, stride: int) -> Span:
    """Plans a tile along one axis of `size` pixels of its plane; the other arguments are as of `Geometry`.

    The end of what is read is rounded up to the stride as its beginning is rounded down: a network would pad there.
    """
    model_size = size if factor == 1 else count_resampled(size, factor)
    model_core = core if model_size == size else find_needed(core, size, model_size)
    first = max(0, model_core.start - halo) // stride * stride
    model_read = slice(first, min(model_size, -(-(model_core.stop + halo) // stride) * stride))
    read = model_read if model_size == size else find_needed(model_read, model_size, size)
    return Span(read, model_read, model_core, model_size)


def find_stride(predictor: Predictor) -> int:
    """Returns the pixels at whose multiples reads begin."""
    return math.lcm(*predictor.stride_zyx[1:])


def _triple(numbers: Any) -> Triple:
    z, y, x = (int(number) for number in numbers)
    return z, y, x


def plan_geometry(
    predictor: Predictor,
    volume: Volume,
    *,
    axes: str,
    halo: int,
    tile: int | Literal["auto"],
    memory_bytes: int,
    bytes_per_pixel: float,
    threads: int,
    chunk_zyx: Triple | None,
    device_bytes: int | None = None,
    decode_cost: float = 0.01,
) -> Geometry:
    """Chooses tiles and blocks.

    Of the tiles that memory allows, those are taken for which the fewest pixels are read per pixel written. Tiles along an
    axis have the same size, so that the last is no sliver. A block has as many tiles one behind the other as make up
    about `USUAL_BLOCK` voxels and whole chunks of the input.

    Args:
        predictor: What predicts.
        volume: What is predicted.
        axes: One of `AXES`.
        halo: Pixels, of the model's size, that are read around a tile.
        tile: Edge of a tile in pixels of the volume, rounded up to the predictor's stride.
        memory_bytes: What blocks may take at once, beside the program itself.
        bytes_per_pixel: Peak memory of a forward pass per pixel of its input, for all channels.
        threads: Blocks that are under way at once; only one of them is in a forward pass.
        chunk_zyx: Chunks of the input, None if it has none.
        device_bytes: Memory of the device for the forward pass; None: it takes from `memory_bytes`.
        decode_cost: Time of reading and decoding a voxel over that of predicting one.

    Raises:
        SettingsError: The axes are not known, or memory does not hold the smallest tile.
        ImageError: The voxel sizes do not fit.
    """
    if axes not in AXES:
        raise SettingsError(unknown("axes", axes, AXES))
    factors = tuple(choose_factors(volume, axis, predictor.voxel_size_um) for axis in axes)
    stride = find_stride(predictor)
    reach, margin = predictor.in_channels // 2, predictor.halo_zyx[0]
    start = Geometry(axes, Grid(volume.shape, (1, 1, 1), (1, 1, 1)), halo, stride, reach, 1, factors, margin)

    def fits(geometry: Geometry) -> bool:
        voxels = math.prod(map(min, geometry.grid.tile_zyx, volume.shape))
        if tile == "auto" and (_count_pixels(geometry) > MOST_PIXELS or voxels > 2 * USUAL_BLOCK):
            return False
        forward = count_forward_bytes(geometry, bytes_per_pixel)
        host = threads * count_block_bytes(geometry, volume.data.dtype.itemsize, len(predictor.classes))
        if device_bytes is None:
            return forward + host <= memory_bytes
        return PASSES_GPU * forward <= device_bytes and host <= memory_bytes

    best, least, smallest = None, math.inf, None
    batch = BATCH if device_bytes is None else BATCH_GPU
    for tile_zyx in _list_tiles(volume.shape, axes, stride, tile):
        for geometry in _list_batches(start, tile_zyx, batch):
            if smallest is None or math.prod(tile_zyx) <= math.prod(smallest.grid.tile_zyx):
                smallest = geometry
            if not fits(geometry):
                continue
            cost = count_read_share(geometry)
            if cost < least:
                geometry = _grow_block(geometry, chunk_zyx or (1, 1, 1), fits)
                cost += decode_cost * _count_decoded_share(geometry, chunk_zyx or (1, 1, 1))
                best, least = (geometry, cost) if cost < least else (best, least)
            break
    if best is None:
        assert smallest is not None
        forward = count_forward_bytes(smallest, bytes_per_pixel)
        host = threads * count_block_bytes(smallest, volume.data.dtype.itemsize, len(predictor.classes))
        raise SettingsError(
            f"{volume.path or volume.name}: {'the tile asked for' if tile != 'auto' else 'even the smallest tile'} of "
            f"{' x '.join(map(str, smallest.grid.tile_zyx))} voxels with a halo of {halo} pixels takes {forward / 1e6:.0f} "
            f"MB to predict and {host / 1e6:.0f} MB for {threads} blocks under way; found {memory_bytes / 1e6:.0f} MB"
            + (f", and {device_bytes / 1e6:.0f} MB on the device" if device_bytes is not None else "")
            + ". Raise --max-memory, or give a larger --tolerance, a smaller --tile or fewer --threads."
        )
    _note_spacing(predictor, volume, axes)
    if not predictor.bounded and not best.covers_planes():
        warnings.warn(
            f"{volume.path or volume.name}: this network looks at the whole image at once, so tiles of "
            f"{' x '.join(map(str, best.grid.tile_zyx))} voxels only approximate it. Raise --max-memory if there is more.",
            stacklevel=2,
        )
    return best


def _note_spacing(predictor: Predictor, volume: Volume, axes: str) -> None:
    """Warns where a model that reads neighbouring planes gets them from other distances than it learned from."""
    trained_um, own_um = predictor.voxel_size_um, volume.voxel_size_um
    seen = max(predictor.in_channels, 2 * predictor.halo_zyx[0] + 1)
    if seen == 1 or trained_um is None or own_um is None:
        return
    other = {axis: own_um[PLANE[axis][0]] for axis in axes}
    if any(max(own / trained_um[0], trained_um[0] / own) > SIZE_TOLERANCE for own in other.values()):
        found = ", ".join(f"{um:.4g} um along {axis}" for axis, um in other.items())
        warnings.warn(
            f"{volume.path or volume.name}: the distance of planes is {found}, but the model, which reads {seen} of them at "
            f"once, learned from {trained_um[0]:.4g} um, and distances cannot be resampled. Check some of the labels.",
            stacklevel=3,
        )


def estimate_memory(
    geometry: Geometry, *, itemsize: int, classes: int, bytes_per_pixel: float, threads: int, on_device: bool = False
) -> int:
    """Returns the bytes that blocks take at once, beside the program itself; `on_device`: without the forward pass."""
    forward = 0 if on_device else count_forward_bytes(geometry, bytes_per_pixel)
    return forward + threads * count_block_bytes(geometry, itemsize, classes)


def count_forward_bytes(geometry: Geometry, bytes_per_pixel: float) -> int:
    """Returns the memory of a forward pass."""
    return math.ceil(_count_pixels(geometry) * bytes_per_pixel)


def count_block_bytes(geometry: Geometry, itemsize: int, classes: int) -> int:
    """Returns the memory of a block under way: what was read, a batch cut from it, what is written, probabilities."""
    grid, channels = geometry.grid, 2 * geometry.reach + 1
    raw = itemsize * math.prod(_measure_block_read(geometry, d) for d in range(3))
    batch = _count_pixels(geometry)
    total = raw + itemsize * channels * batch
    total += 3 * math.prod(map(min, grid.block_zyx, grid.shape_zyx))  # labels, confidence, and either of them encoded
    if geometry.is_resampled or len(geometry.axes) > 1:
        own = [math.prod(in_volume for *_, (_, _, in_volume) in _list_reads(geometry, i)) for i in range(len(geometry.axes))]
        batch = max(batch, (geometry.planes + 2 * geometry.margin) * max(own))
        total += 4 * 4 * (channels + classes) * batch  # scaled, and three copies while they are resampled
        total += 4 * classes * math.prod(map(min, grid.tile_zyx, grid.shape_zyx))
    return total


def count_read_share(geometry: Geometry) -> float:
    """Returns the pixels that are predicted over those that are written; 1 where nothing is predicted twice."""
    shares = [
        math.prod(total / count_resampled(size, factor) for size, factor, (total, _, _) in _list_reads(geometry, axis))
        for axis in range(len(geometry.axes))
    ]
    return sum(shares) / len(shares) * (geometry.planes + 2 * geometry.margin) / geometry.planes


def _count_pixels(geometry: Geometry) -> int:
    """Returns the pixels of the largest forward pass, padded to the stride as networks do it."""
    stride = geometry.stride
    areas = [
        math.prod(-(-longest // stride) * stride for _, _, (_, longest, _) in _list_reads(geometry, axis))
        for axis in range(len(geometry.axes))
    ]
    return (geometry.planes + 2 * geometry.margin) * max(areas)


def _list_reads(geometry: Geometry, axis: int) -> list[tuple[int, float, tuple[int, int, int]]]:
    """Returns size, factor and `_measure_reads` of rows and columns, for the axis of this index."""
    grid = geometry.grid
    return [
        (
            grid.shape_zyx[d],
            factor,
            _measure_reads(grid.tile_zyx[d], grid.shape_zyx[d], factor, geometry.halo, geometry.stride),
        )
        for d, factor in zip(PLANE[geometry.axes[axis]][1:], geometry.factors[axis], strict=True)
    ]


@lru_cache(maxsize=4096)
def _measure_reads(edge: int, size: int, factor: float, halo: int, stride: int) -> tuple[int, int, int]:
    """Returns what tiles along an axis read: in total and at most, in pixels of the model, and at most in the volume's."""
    spans = [plan_span(slice(start, min(start + edge, size)), size, factor, halo, stride) for start in range(0, size, edge)]
    reads = [span.model_read.stop - span.model_read.start for span in spans]
    return sum(reads), max(reads), max(span.read.stop - span.read.start for span in spans)


def _list_tiles(shape_zyx: Triple, axes: str, stride: int, tile: int | Literal["auto"]) -> list[Triple]:
    """Returns the tiles that may be chosen, large ones first, with one voxel along an only axis."""
    options = []
    for d, size in enumerate(shape_zyx):
        if len(axes) == 1 and PLANE[axes][0] == d:
            options.append([1])
        elif tile != "auto":
            options.append([-(-min(tile, size) // stride) * stride])
        else:
            step = math.lcm(stride, EDGE)
            parts = {min(round(1.2**i), -(-size // step)) for i in range(32)} | {*range(1, 9)}
            options.append(sorted({-(-size // (part * step)) * step for part in parts}, reverse=True))
    return sorted(((z, y, x) for z, y, x in product(*options)), key=math.prod, reverse=True)


def _list_batches(start: Geometry, tile_zyx: Triple, batch: int) -> list[Geometry]:
    """Returns geometries of this tile: with several planes at once where it is small or volumes are seen, and with one."""
    tiled = replace(start, grid=Grid(start.grid.shape_zyx, tile_zyx, tile_zyx))
    depth = max(start.grid.shape_zyx[PLANE[axis][0]] for axis in start.axes)
    most = max(1, min(MOST_PLANES, depth, batch // _count_pixels(tiled)))
    options = {most, 1} if not start.margin else {min(depth, 2 * start.margin), min(depth, start.margin), 1}
    geometries = []
    for planes in sorted(options, reverse=True):
        edges = list(tile_zyx)
        if len(start.axes) == 1:
            edges[PLANE[start.axes][0]] = planes
        tile = _triple(edges)
        geometries.append(replace(tiled, grid=Grid(start.grid.shape_zyx, tile, tile), planes=planes))
    return geometries


def _grow_block(geometry: Geometry, chunk_zyx: Triple, fits: Callable[[Geometry], bool]) -> Geometry:
    """Returns a geometry whose blocks have more tiles: first one behind the other, then side by side."""
    shape, tile = geometry.grid.shape_zyx, geometry.grid.tile_zyx
    aim = max(math.prod(map(min, tile, shape)), min(USUAL_BLOCK, math.prod(shape) // FEWEST_BLOCKS))
    along = [PLANE[axis][0] for axis in geometry.axes]
    for d in [*along, *(d for d in (2, 1, 0) if d not in along)]:
        most = -(-shape[d] // tile[d])
        unit = math.lcm(tile[d], chunk_zyx[d]) // tile[d]
        counts = {most, *range(1, 9), *(unit * i for i in range(1, 9)), *(i for i in range(1, unit) if unit % i == 0)}
        best, best_rank = geometry, (False, 0)
        for count in sorted(count for count in counts if count <= most):
            edges = list(geometry.grid.block_zyx)
            edges[d] = count * tile[d]
            grown = replace(geometry, grid=Grid(shape, tile, _triple(edges)))
            is_whole = count % unit == 0 or count == most
            if math.prod(map(min, edges, shape)) > (2 * aim if is_whole and count <= unit else aim) or not fits(grown):
                break
            rank = (is_whole or unit % count == 0, count)
            best, best_rank = (grown, rank) if rank > best_rank else (best, best_rank)
        geometry = best
    return geometry


def _count_decoded_share(geometry: Geometry, chunk_zyx: Triple) -> float:
    """Returns about how often a voxel of the input is decoded."""
    share = 1.0
    for d, chunk in enumerate(chunk_zyx):
        size = geometry.grid.shape_zyx[d]
        edge = min(geometry.grid.block_zyx[d], size)
        length = _measure_block_read(geometry, d)
        is_whole = length == edge and (edge % chunk == 0 or edge == size)
        share *= min(-(-size // chunk) * chunk, length if is_whole else length + chunk - 1) / edge
    return share


def _measure_block_read(geometry: Geometry, d: int) -> int:
    """Returns the most voxels that are read for a block along axis `d`."""
    size = geometry.grid.shape_zyx[d]
    edge = min(geometry.grid.block_zyx[d], size)
    lengths = []
    for axis, factors in geometry.list_axes():
        if PLANE[axis][0] == d:
            lengths.append(min(size, edge + 2 * (geometry.reach + geometry.margin)))
        else:
            factor = factors[PLANE[axis].index(d) - 1]
            lengths.append(_measure_reads(edge, size, factor, geometry.halo, geometry.stride)[2])
    return max(lengths)
