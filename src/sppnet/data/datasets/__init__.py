"""Data sets: what each needs of its files, and how they are listed."""
