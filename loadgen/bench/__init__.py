"""The benchmark: Millstream beside other servers, all of them measured in one run on one machine."""
