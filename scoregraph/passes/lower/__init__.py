"""Lowering: sampling graph and tensor programs → the flat calls of a draft plan."""
