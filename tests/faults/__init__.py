"""What is promised while processes and servers die."""
