"""A synthetic dataset in the likeness of X-ray microCT of mouse brain."""
