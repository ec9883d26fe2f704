"""A run as one HTML file that needs no network: what was done, how good it is, and where it is wrong."""
