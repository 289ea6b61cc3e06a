"""What training minimises: cross-entropy, or timm's binary cross-entropy, of labels of either kind."""

import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn

from dk_bench.config import LossConfig


class TrainingLoss(nn.Module):
    """The loss that section ``loss`` describes.

    Takes logits (N, classes) and labels, (N,) int64 or, of mixed images, (N, classes) float whose rows sum to 1.
    Returns the mean over the images. Labels of either kind are smoothed here. timm smooths those of mixed images where
    it mixes, which is the same.
    """

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.smoothing = config.label_smoothing
        self.binary = None
        if config.bce:
            self.binary = BinaryCrossEntropy(
                self.smoothing, target_threshold=config.target_threshold, sum_classes=config.sum_classes
            )

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.binary is None:
            return F.cross_entropy(logits, labels, label_smoothing=self.smoothing)
        if labels.is_floating_point():  # which timm's loss takes as they are
            labels = labels * (1 - self.smoothing) + self.smoothing / logits.shape[-1]
        return self.binary(logits.float(), labels)
