"""Passes over a draft plan: calls, constants, memory."""
