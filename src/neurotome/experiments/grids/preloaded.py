"""What takes long to import; loaded once by the process from which a grid's runs are forked.

That process also comes to ignore SIGTERM, which a cluster sends to every process of a job: without it the grid would not
learn when its run has written its checkpoint, and would not wait for it.
"""

import signal

from neurotome.models.networks import import_smp

import_smp()

from neurotome.pixels import saving as saving  # noqa: E402  # after torchvision has been mended
from neurotome.training import keeper as keeper  # noqa: E402

signal.signal(signal.SIGTERM, signal.SIG_IGN)
