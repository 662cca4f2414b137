"""``python -m scoregraph`` is the command line."""

from scoregraph.cli import main

main()
