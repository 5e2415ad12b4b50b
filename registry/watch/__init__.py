"""The blob store, watched: what stands in it, which versions that is, and their bytes on the way into Redis."""
