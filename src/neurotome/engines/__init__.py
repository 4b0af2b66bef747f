"""Engines: map a function over the blocks of a volume, in this process, in several, or on a cluster."""
