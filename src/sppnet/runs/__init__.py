"""One run: its identity, its directory, what it was made with, and a network that came of it."""
