"""What the pipeline calls: each stage from the files of a run to files of that run, and what they share."""
