"""How Millstream grows: what throughput and latency become with more of what a user may have more of."""
