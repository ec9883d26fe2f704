"""Slices and labels into a volume, at once or as they arrive."""
