"""Where models come from: blob stores, the catalogue of versions, artifacts into Redis, promotion."""
