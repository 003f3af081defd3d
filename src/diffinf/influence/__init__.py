"""Self-influence, rival scores, noise estimates and flags."""
