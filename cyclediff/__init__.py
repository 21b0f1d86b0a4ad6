"""cyclediff: CycleDiffusion (arXiv 2210.05559) and the tools to compare it with its baselines."""
