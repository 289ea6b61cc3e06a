"""The paper's claims, what the records say of each, and how many seeds a verdict takes. Begin with claims.yaml, which
states them; findings.py judges them."""
