"""What is in production: from the timeline of tags and acts to the records in Redis, step by step."""
