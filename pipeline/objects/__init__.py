"""Objects in three dimensions: components of a whole volume in bounded memory, and labels without the small ones."""
