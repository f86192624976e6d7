"""One file per verb, each readable from top to bottom."""
