"""Training shared by every room that trains: a resumable loop, weight averaging, processes, signs of trouble."""
