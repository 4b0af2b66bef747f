"""What takes long to import; loaded once by the process from which helpers, or a grid's runs, are forked.

That process also comes to ignore SIGTERM, which a cluster sends to every process of a job: it must stay until the trainings
that came from it have written their checkpoint.
"""

import signal

from neurotome.models.networks import import_smp

import_smp()

from neurotome.training import keeper as keeper  # noqa: E402  # after torchvision has been mended

signal.signal(signal.SIGTERM, signal.SIG_IGN)
