"""Imports matplotlib whatever backend the environment names: figures are drawn without any, straight into files.

Notebooks set MPLBACKEND to one that other environments lack, and matplotlib refuses to be imported then. Nobody else
imports matplotlib first: this module is the first that the room imports.
"""

import contextlib
import os

_NAMED = os.environ.pop("MPLBACKEND", None)
import matplotlib  # noqa: E402

if _NAMED is not None:
    os.environ["MPLBACKEND"] = _NAMED
    # for the plots of whoever imports neurotome; where there is no such backend, theirs will say so
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = _NAMED
