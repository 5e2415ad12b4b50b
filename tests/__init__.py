"""The tests, and what they share: conditions to wait for, real servers to start."""
