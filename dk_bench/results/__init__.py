"""Run records, the paper's figures, statistics and tables."""
