"""What records say of the paper's claims: contrasts between cells, verdicts, and the seeds they take."""
