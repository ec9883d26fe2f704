"""What is computed from plain arrays, most of it compiled: filters, histograms, levels, counts, measures; no disk."""
