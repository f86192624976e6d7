"""`sppnet bench`: ours and what one would use otherwise, timed in turns in one process, as ratios."""
