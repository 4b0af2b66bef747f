"""Pixel classifiers that are trained: what they compute, and how they are saved and loaded without running code."""
