"""Tables of run records: runs grouped into cells, the paper's figures beside ours."""
