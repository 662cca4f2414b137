"""scoregraph."""
