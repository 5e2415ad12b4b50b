"""Programs that serve a model with another project's server; each runs in that project's own virtual environment.

They are started by their paths, take everything from BENCH_* variables, and import nothing of ours.
"""
