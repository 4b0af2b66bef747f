"""Searches for settings by short trainings."""
