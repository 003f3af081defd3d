"""DiffAE (arXiv 2111.15640) as it was released: its network, its sampling, and the import of its checkpoints."""
