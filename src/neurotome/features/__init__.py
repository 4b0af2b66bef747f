"""Pixel features: what a classifier sees of a pixel. Computed window by window, the same whatever the windows."""

from neurotome.features.base import Extractor, Read
from neurotome.features.choose import FeatureSettings, build_extractor
from neurotome.features.encoder import EncoderSettings
from neurotome.features.filters import FilterSettings

__all__ = ["EncoderSettings", "Extractor", "FeatureSettings", "FilterSettings", "Read", "build_extractor"]
