"""Surrogate, edit and gate: from a flagged sample to an accepted edit or a counted refusal."""
