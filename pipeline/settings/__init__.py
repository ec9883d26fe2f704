"""What a run is asked to do: recipes and options, from Python or YAML, checked before anything starts."""
