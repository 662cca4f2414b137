"""Rewrites: sampling graphs, tensor programs and plans, each in a folder of its own with its pipeline."""
