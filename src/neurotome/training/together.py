"""make_strategy: how Lightning averages the gradients of ranks that are connected already."""

from __future__ import annotations

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.strategies import DDPStrategy

from neurotome.training.rank import HOST, Rank


class Connected(ClusterEnvironment):
    """Tells Lightning which rank this is; there is nothing left to start or to connect."""

    def __init__(self, rank: Rank) -> None:
        super().__init__()
        self.rank = rank

    @property
    def creates_processes_externally(self) -> bool:
        """Says that the others are there."""
        return True

    @property
    def main_address(self) -> str:
        """Is not asked for, since the ranks are connected."""
        return HOST

    @property
    def main_port(self) -> int:
        """Is not asked for either."""
        return 0

    @staticmethod
    def detect() -> bool:
        """Says that it must be chosen."""
        return False

    def world_size(self) -> int:
        """Returns how many ranks there are."""
        return self.rank.count

    def set_world_size(self, size: int) -> None:
        """Is settled."""

    def global_rank(self) -> int:
        """Returns which this is."""
        return self.rank.number

    def set_global_rank(self, rank: int) -> None:
        """Is settled."""

    def local_rank(self) -> int:
        """Returns which this is on this machine, which has all of them."""
        return self.rank.number

    def node_rank(self) -> int:
        """Returns which machine this is."""
        return 0


class Together(DDPStrategy):
    """torch's DistributedDataParallel in processes that were started by us."""

    def _configure_launcher(self) -> None:
        """Leaves out Lightning's, which would set the threads of this process for good."""


def make_strategy(rank: Rank) -> DDPStrategy:
    """Returns Lightning's strategy of a rank.

    Statistics are the same on all ranks and need not be sent. Some networks have weights that no output depends on, which
    the first step shows: they are the same at every step.
    """
    return Together(cluster_environment=Connected(rank), broadcast_buffers=False, static_graph=True)
