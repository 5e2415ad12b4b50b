"""The trial of a version, in a process that may die of it."""
