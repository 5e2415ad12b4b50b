"""The gRPC server for callers."""
