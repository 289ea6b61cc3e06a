"""One self-contained HTML page from run records, bench records and pictures beside them. Begin with page.py."""
