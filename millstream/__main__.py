"""`python -m millstream` is the command line."""

from __future__ import annotations

from millstream.cli import main

if __name__ == "__main__":
    main()
