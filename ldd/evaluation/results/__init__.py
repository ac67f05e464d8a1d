"""Results of an evaluation: one row for each trained network, and the report of them as files and tables."""
