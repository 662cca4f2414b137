"""Passes over tensor programs (``torch.fx.GraphModule`` → ``torch.fx.GraphModule``). Importing a module here needs torch."""
