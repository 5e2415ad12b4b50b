"""How work gets in: the entrance, the feature store, producers."""
