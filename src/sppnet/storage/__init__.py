"""Files on disk: `files.py` has atomic writes and locks; `tensors.py` reads tensor files without executing anything."""
