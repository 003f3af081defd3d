"""Classifiers: models, training with checkpoints and dynamics, cross-fitting."""
