"""What a run found, from its tables alone: summaries, profiles, inspection, rows for people's own analysis."""
