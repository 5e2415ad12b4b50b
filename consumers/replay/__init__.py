"""Replay: recorded predict calls made once more by the code that workers run, and what came of it."""
