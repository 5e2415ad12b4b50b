"""The inference worker: reads a batch, predicts, and completes it through the exit."""
