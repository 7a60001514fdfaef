"""The settings of a training run, checked when they are made."""

from dataclasses import dataclass, field

from fer_utils.augment import Augment, require_number

CHOICES = {
    "optimizer": ("sgd", "adamw"),
    "schedule": ("one_cycle", "cosine", "plateau"),
    "class_weights": ("none", "balanced"),
    "sampling": ("shuffle", "balanced"),
    "precision": ("auto", "fp32", "bf16"),
}

# Smallest values of the whole numbers.
LEAST = {"epochs": 1, "batch_size": 1, "patience": 0, "plateau_patience": 0, "weak_epochs": 0, "seed": 0}


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the outcome of a training run, apart from the model and the data."""

    epochs: int = 24  # passes over the training images
    batch_size: int = 128  # images per step
    optimizer: str = "sgd"  # "sgd" with Nesterov momentum, or "adamw" (Loshchilov & Hutter 2019, arXiv:1711.05101)
    lr: float = 0.05  # highest learning rate
    # Factors on lr as pairs (name of a module, factor); 1 for all other modules, and a longer name has priority. 0
    # freezes a module: weights and norm statistics stay, dropout is off. Small factors for early layers preserve
    # pretrained features (discriminative fine-tuning: Howard & Ruder 2018, arXiv:1801.06146).
    lr_factors: tuple[tuple[str, float], ...] = ()
    momentum: float = 0.9  # of SGD
    weight_decay: float = 5e-4  # on the weights of convolutions and dense layers
    decay_all: bool = False  # whether weight_decay also applies to biases and norms
    # "one_cycle" (Smith & Topin 2017, arXiv:1708.07120): linear warm-up, then half a cosine down.
    # "cosine" (Loshchilov & Hutter 2017, arXiv:1608.03983): half a cosine down, without warm-up.
    # "plateau": lr is multiplied by plateau_factor each time the loss on val stops improving.
    schedule: str = "one_cycle"
    warmup: float = 0.15  # one_cycle: share of all steps in the warm-up
    warmup_from: float = 0.04  # one_cycle: start of the warm-up, as a factor on lr
    final: float = 0.0  # one_cycle and cosine: end of the schedule, as a factor on lr
    plateau_factor: float = 0.1  # plateau: factor on lr at each plateau
    plateau_patience: int = 3  # plateau: epochs without a lower loss on val that are tolerated
    clip: float = 0.0  # largest norm of the whole gradient (Pascanu et al. 2013, arXiv:1211.5063); 0: no limit
    # Decay per step of a moving average of the weights, reached gradually; the average is validated and kept (Polyak &
    # Juditsky 1992). 0: off.
    ema: float = 0.0
    patience: int = 0  # early stopping: epochs without a better metric on val before training ends; 0: never
    label_smoothing: float = 0.1  # classifiers only, see tasks.cross_entropy
    focal_gamma: float = 0.0  # classifiers only, see tasks.cross_entropy
    class_weights: str = "none"  # classifiers only: "none", or "balanced", see tasks.balanced_weights
    # "shuffle": every epoch shows each image once. "balanced": it draws as many images with replacement, and each class
    # has the same probability; classifiers only.
    sampling: str = "shuffle"
    augment: Augment = field(default_factory=Augment)  # strengths of the augmentation
    weak_epochs: int = 0  # number of last epochs in which images are only flipped and shifted, see augment_in
    precision: str = "auto"  # "fp32", "bf16", or "auto", see device.choose_precision
    seed: int = 0  # of initial weights, order, dropout and augmentation

    def __post_init__(self) -> None:
        """Refuse values that make no sense; ValueError names the field."""
        for name, least in LEAST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"TrainConfig.{name} is {value!r}; it must be a whole number, {least} or more")
        require_number("TrainConfig.lr", self.lr, 1e-9, 1e3)
        for name in ("warmup", "momentum", "label_smoothing", "ema"):
            require_number(f"TrainConfig.{name}", getattr(self, name), 0, 0.99999)
        for name in ("warmup_from", "final", "plateau_factor"):
            require_number(f"TrainConfig.{name}", getattr(self, name), 0, 1)
        for name in ("weight_decay", "clip", "focal_gamma"):
            require_number(f"TrainConfig.{name}", getattr(self, name), 0, 1e6)
        for module, factor in self.lr_factors:
            require_number(f"the factor of {module!r} in TrainConfig.lr_factors", factor, 0, 1e3)
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"TrainConfig.{name} is {getattr(self, name)!r}; it must be one of {allowed}")

    def augment_in(self, epoch: int) -> Augment:
        """Return the augmentation of an epoch, counted from 0; the last `weak_epochs` only flip and shift.

        Strong augmentation shows faces that never occur on val and test; at the end, a network can adapt to real ones.
        """
        if epoch < self.epochs - self.weak_epochs:
            return self.augment
        return self.augment.without("rotate", "scale", "brightness", "contrast", "erase", "mixup", "cutmix")
