"""Training: patches from a sampler, a Lightning module, a run folder that survives being killed."""
