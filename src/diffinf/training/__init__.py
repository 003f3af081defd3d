"""Training shared by every room that trains: a resumable loop and weight averaging."""
