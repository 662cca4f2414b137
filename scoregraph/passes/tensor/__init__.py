"""Passes over tensor programs, ``torch.fx.GraphModule`` → ``torch.fx.GraphModule``; the modules here need torch."""
