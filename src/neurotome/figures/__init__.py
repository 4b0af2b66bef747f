"""All plotting: training, scores, comparisons, examples, what a dataset looks like, what was measured.

Every function returns a `matplotlib.figure.Figure` that belongs to its caller alone: pyplot, which keeps figures, is not
used. A class has the same colour in every figure.
"""

from neurotome.figures import backend as _backend  # noqa: F401 - before all that imports matplotlib
from neurotome.figures.dataset import plot_class_shares as plot_class_shares
from neurotome.figures.dataset import plot_histograms as plot_histograms
from neurotome.figures.measures import plot_coarse_maps as plot_coarse_maps
from neurotome.figures.measures import plot_diameters as plot_diameters
from neurotome.figures.measures import plot_directions as plot_directions
from neurotome.figures.measures import plot_fractions as plot_fractions
from neurotome.figures.measures import plot_network as plot_network
from neurotome.figures.pictures import Example as Example
from neurotome.figures.pictures import plot_augmentation as plot_augmentation
from neurotome.figures.pictures import plot_augmented as plot_augmented
from neurotome.figures.pictures import plot_examples as plot_examples
from neurotome.figures.pictures import plot_planes as plot_planes
from neurotome.figures.pictures import plot_samples as plot_samples
from neurotome.figures.pictures import plot_uncertainty as plot_uncertainty
from neurotome.figures.scores import plot_class_scores as plot_class_scores
from neurotome.figures.scores import plot_confusion as plot_confusion
from neurotome.figures.scores import plot_importance as plot_importance
from neurotome.figures.scores import plot_methods as plot_methods
from neurotome.figures.search import plot_search as plot_search
from neurotome.figures.settings import Setting as Setting
from neurotome.figures.settings import plot_settings as plot_settings
from neurotome.figures.style import Figure as Figure
from neurotome.figures.style import label_classes as label_classes
from neurotome.figures.style import save_figure as save_figure
from neurotome.figures.suggested import plot_suggested as plot_suggested
from neurotome.figures.training import plot_training as plot_training
from neurotome.figures.workflow import plot_workflow as plot_workflow
