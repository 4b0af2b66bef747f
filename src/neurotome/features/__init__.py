"""Pixel features: what a classifier sees of a pixel. Computed window by window, the same whatever the windows."""

from neurotome.features.base import Extractor, Prepared
from neurotome.features.choose import KINDS, FeatureSettings, build_extractor
from neurotome.features.encoder import EncoderSettings
from neurotome.features.filters import FilterSettings

__all__ = ["KINDS", "EncoderSettings", "Extractor", "FeatureSettings", "FilterSettings", "Prepared", "build_extractor"]
