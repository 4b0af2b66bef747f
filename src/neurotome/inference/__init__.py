"""Applies a model to images, stacks and folders."""
