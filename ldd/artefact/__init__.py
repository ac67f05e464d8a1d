"""TODO: artefact."""
