"""What takes long to import; loaded once by the process from which a grid's runs are forked."""

from neurotome.models.networks import import_smp

import_smp()

from neurotome.pixels import saving as saving  # noqa: E402  # after torchvision has been mended
from neurotome.training import keeper as keeper  # noqa: E402
