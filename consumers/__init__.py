"""What reads the streams: the inference worker, the event sink, replay."""
