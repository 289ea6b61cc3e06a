"""What a model costs."""

from dk_bench.analysis.cost import Cost, count_cost

__all__ = ["Cost", "count_cost"]
