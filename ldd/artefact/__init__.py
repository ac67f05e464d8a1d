"""The artefact: a distilled set in memory and on disk, what it says of itself, and its exports."""
