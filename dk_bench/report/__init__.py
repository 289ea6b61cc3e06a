"""One self-contained HTML page from run records, from what `dk-bench bench` wrote and from pictures beside them."""
