"""Arms trained with equal steps, and their comparison."""
