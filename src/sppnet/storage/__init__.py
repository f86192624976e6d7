"""Files on disk: `files.py` writes atomically and locks; `tensors.py` reads tensor files without executing anything."""
