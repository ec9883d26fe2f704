"""Exact segmentation of KESM volumes."""
