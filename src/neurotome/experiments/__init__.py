"""Whole experiments: train and score, compare, demonstrate."""
