"""The reference backend: plain, readable torch in float64 or float32. It is the oracle of every test, not a fast path.

``program`` runs plans, call by call, as docs/plan-format.md states them; ``eager`` interprets a sampling graph that no
pass has touched, with the formulas of the papers in ``textbook``. The two share no step of the way.
"""
