"""What a run leaves: record, attempts, lock, what it ran on. Begin with record.py; identity.py tells cells apart."""
