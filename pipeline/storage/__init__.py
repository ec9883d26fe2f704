"""The volume on disk: arrays in shards, tables, labels and locks, and what vouches for each of them."""
