"""What a person looks at, as pixels: parts of slices, overlays, the viewer, and images for other programs."""
