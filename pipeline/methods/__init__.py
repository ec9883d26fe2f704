"""Which method suits a volume: contests of recipes, judged on the same tiles, and classifiers that learn."""
