"""From option files and overrides to a checked configuration. Nothing here imports torch."""
