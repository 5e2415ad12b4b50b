"""A model in memory: loaded from its files, checked, and asked for many rows at once."""
