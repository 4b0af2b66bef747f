"""Grids: many settings, each an ordinary run, whoever does them and however often they are stopped."""
