"""The event sink: from the events streams into DuckDB, once, and the answers to questions about it."""
