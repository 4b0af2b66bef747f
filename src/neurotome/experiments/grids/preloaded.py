"""What takes long to import; loaded once by the process from which a grid's runs are forked."""

from neurotome.pixels import saving as saving
from neurotome.training import preloaded as preloaded
