"""Everything that runs Millstream on one machine: the state directory, child processes, the embedded server."""
