"""Section ``loss``: what training minimises."""

from dataclasses import dataclass

from dk_bench.reading.schema import checked


@dataclass
class LossConfig:
    """Cross-entropy of one class an image, or binary cross-entropy of every class. Validation is always told by plain
    cross-entropy, so that its figures compare."""

    # The share of a label that is spread over all classes.
    label_smoothing: float = checked(0.0, "0 to below 1", lambda share: 0 <= share < 1)
    bce: bool = False  # every class is a question of its own, yes or no
    # Of binary cross-entropy: labels above it are 1, all others 0; null: labels are taken as they are.
    target_threshold: float | None = checked(
        None,
        "null or 0 to below 1, with loss.bce",
        lambda loss: loss.target_threshold is None or (loss.bce and 0 <= loss.target_threshold < 1),
        of_section=True,
    )
    sum_classes: bool = checked(  # of binary cross-entropy: over the classes the sum, not the mean
        False, "false, or loss.bce", lambda loss: loss.bce or not loss.sum_classes, of_section=True
    )
