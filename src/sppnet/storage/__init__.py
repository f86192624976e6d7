"""Files that outlive a process: written whole or not at all, read as data and never as code."""
