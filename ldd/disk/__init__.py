"""Files: written as a whole or not at all, shared between processes, and checked when they are read."""
