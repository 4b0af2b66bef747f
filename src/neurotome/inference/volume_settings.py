"""VolumeSettings: how a whole volume is predicted into an OME-Zarr, checked before anything is read."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from neurotome.engines import EngineSettings
from neurotome.errors import SettingsError, unknown
from neurotome.predictor import BackEnd
from neurotome.quantities import read_bytes

Axes = Literal["z", "y", "x", "zyx"]


@dataclass(frozen=True)
class VolumeSettings:
    """How a volume is predicted block by block into OUTPUT.zarr."""

    axes: Axes = "z"
    """Along which axis slices are taken: z, y or x; zyx: along all three, and probabilities are averaged."""

    bbox: str = ""
    """Only this box, z0:z1,y0:y1,x0:x1 in voxels of the volume, made larger to whole tiles; the rest is 255."""

    mask: str = ""
    """Only where this label image or volume is not 0, made larger to whole tiles. It has the volume's shape, or one that is
    smaller by whole numbers."""

    air_below: float | None = None
    """Tiles in which every grey value is below this are air: they are not computed, and stay 255."""

    tolerance: float = 1e-3
    """The halo is the smallest with which probabilities on tiles of this volume change by no more than this, and 99.99 % of
    the labels not at all. 0: all that the model can see."""

    max_memory: str = "auto"
    """Memory of a worker, such as 2GB; tiles are as large as it allows. auto: half of the machine's, at most 8 GB."""

    back_end: BackEnd = "auto"
    """What computes a network: torch, onnxruntime, openvino or openvino-int8; auto: the fastest of those installed that
    agrees with torch on this volume. openvino-int8 is less accurate, and by how much is said."""

    workers: int | Literal["auto"] = "auto"
    """Processes; auto: one for each GPU, and one on CPUs. The same labels come out however many there are."""

    threads: int | Literal["auto"] = "auto"
    """Blocks that a worker has in hand at once: some are read or written while one is computed. auto: 2, with a GPU 4."""

    scheduler: str = ""
    """Address of a dask scheduler, tcp://HOST:PORT, to whose workers blocks are sent; local starts one here
    (extra: cluster)."""

    slurm: str = ""
    """YAML file of SLURMCluster options with which dask workers are started (extra: cluster)."""

    shard: str = "1/1"
    """Do only a part of the blocks, i/n, for job arrays: n commands share one output, and the last one finishes it."""

    retries: int = 2
    """How often a block that failed is tried again before it is set aside and named."""

    block_timeout: float | Literal["auto"] = "auto"
    """Seconds after which a block is taken to hang, and its worker is replaced; auto: 20 times what blocks take, at least
    600."""

    dry_run: bool = False
    """Say how many blocks there are and what they will take in time, memory and disk, and write nothing."""

    overwrite: bool = False
    """Delete what is at OUTPUT and begin anew."""

    ome_version: Literal["0.5", "0.4"] = "0.5"
    """Version of OME-Zarr that is written: 0.5 in sharded Zarr 3, or 0.4 in Zarr 2 for older viewers."""

    def __post_init__(self) -> None:
        if self.back_end not in get_args(BackEnd):
            raise SettingsError(unknown("back end", self.back_end, get_args(BackEnd)))
        if not 0 <= self.tolerance <= 1:
            raise SettingsError(f"tolerance is {self.tolerance}; expected a difference of probabilities, 0 to 1.")
        if self.air_below is not None and not math.isfinite(self.air_below):
            raise SettingsError(f"air_below is {self.air_below}; expected a grey value.")
        if self.max_memory != "auto":
            read_bytes(self.max_memory)
        self.share  # noqa: B018  # checks the text

    @property
    def engine(self) -> EngineSettings:
        """Where blocks are computed."""
        return EngineSettings(self.workers, self.threads, self.retries, self.block_timeout, self.scheduler, self.slurm)

    @property
    def share(self) -> tuple[int, int]:
        """Which part of the blocks is done, and of how many."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", self.shard)
        number, count = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= number <= count:
            raise SettingsError(f"shard is {self.shard!r}; expected i/n, such as 3/10 for the third of ten jobs.")
        return number, count

    def refuse_given(self, why: str) -> None:
        """Raises a SettingsError that names the settings that are not the usual ones, if there are any."""
        given = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
        if given:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise SettingsError(f"{options}: only for a volume written as OME-Zarr; {why}.")
