"""Is it still what it was, and how good is what others made: everything read back, and masks compared."""
