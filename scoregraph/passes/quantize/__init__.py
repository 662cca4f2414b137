"""Which products of a plan compute in fewer bits, on which grids, and how those were found."""
