"""The paper's claims: what tests them, what the records say, and how many seeds a verdict takes."""
