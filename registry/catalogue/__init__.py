"""Every version that was ever found, in DuckDB."""
