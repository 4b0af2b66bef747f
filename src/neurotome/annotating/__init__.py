"""What is annotated, before it is learned: where to annotate next, and labels between annotated slices."""
