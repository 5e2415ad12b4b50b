"""The event log outside of the sink: its chain, its files, and what is proven and asked with them."""
