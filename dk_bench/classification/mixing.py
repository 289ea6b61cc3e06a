"""timm's mixup and cutmix: the images of a batch mixed with each other, and their labels with them."""

from timm.data import Mixup
from torch import Tensor

from dk_bench.config import AugmentConfig
from dk_bench.data.timm_augment import drawn_by
from dk_bench.errors import UserError


class Mixing:
    """Mixes a batch as ``config`` says; every device mixes its own images. The loss smooths labels, this does not."""

    def __init__(self, config: AugmentConfig, classes: int) -> None:
        shares = {"prob": config.mixup_prob, "switch_prob": config.mixup_switch_prob, "mode": config.mixup_mode}
        self.mixup = Mixup(config.mixup, config.cutmix, **shares, label_smoothing=0.0, num_classes=classes)

    def __call__(self, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Returns images (N, C, H, W), changed in place, and the share of each class in every one, (N, classes)
        float32, of labels (N,) int64. What is drawn is a function of ``seed``, an integer from 0. Raises UserError for
        an odd number of images, which timm does not pair."""
        if len(images) % 2:
            reason = "so that a device has an even number of images, which mixup and cutmix pair"
            raise UserError(f"a batch of {len(images)} images on a device: expected data.batch_size {reason}")
        with drawn_by(seed % 2**32):
            return self.mixup(images, labels)


def mixing_of(config: AugmentConfig, classes: int) -> Mixing | None:
    """Returns what mixes the batches of a configuration; None where neither mixup nor cutmix is set."""
    return Mixing(config, classes) if config.mixup or config.cutmix else None
