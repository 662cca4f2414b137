"""Passes over a sampling graph: tables, branches, guidance."""
