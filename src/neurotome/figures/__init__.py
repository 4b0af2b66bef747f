"""All plotting: training, scores, comparisons, examples and what a dataset looks like.

Every function returns a `matplotlib.figure.Figure` that belongs to its caller alone: pyplot, which keeps figures, is not
used. A class has the same colour in every figure.
"""

from neurotome.figures import backend as _backend  # noqa: F401 - before all that imports matplotlib
from neurotome.figures.dataset import plot_class_shares, plot_histograms
from neurotome.figures.methods import plot_methods
from neurotome.figures.pictures import Example, plot_augmentation, plot_examples, plot_samples
from neurotome.figures.pixels import plot_importance, plot_uncertainty
from neurotome.figures.scores import plot_class_scores, plot_confusion
from neurotome.figures.style import label_classes, save_figure
from neurotome.figures.training import plot_training

__all__ = [
    "Example",
    "label_classes",
    "plot_augmentation",
    "plot_class_scores",
    "plot_class_shares",
    "plot_confusion",
    "plot_examples",
    "plot_histograms",
    "plot_importance",
    "plot_methods",
    "plot_samples",
    "plot_training",
    "plot_uncertainty",
    "save_figure",
]
