"""A version on its way into the store, from a folder or a file of somebody's own."""
