"""Tables of run records: runs grouped into cells, the paper's figures beside ours. Begin with table.py, which makes any
table from columns; cells.py groups the runs."""
