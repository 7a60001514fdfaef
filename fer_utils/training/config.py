"""The settings of a training run: every option of the one training loop, checked before it starts."""

from dataclasses import dataclass, field

from fer_utils.augment import Augment, require_number

CHOICES = {
    "optimizer": ("sgd", "adamw"),
    "schedule": ("one_cycle", "cosine", "plateau"),
    "class_weights": ("none", "balanced"),
    "precision": ("auto", "fp32", "bf16"),
}


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the outcome of a training run, apart from the model and the data.

    optimizer: "sgd" with Nesterov momentum, or "adamw" (Loshchilov & Hutter 2019, arXiv:1711.05101). weight_decay acts
    on weights of convolutions and dense layers only; decay_all: on biases and norms as well.

    lr is the highest learning rate. schedule: "one_cycle" (Smith & Topin 2017, arXiv:1708.07120) rises in a straight
    line from lr * warmup_from during the first `warmup` of all steps, then falls along half a cosine to lr * final;
    "cosine" (Loshchilov & Hutter 2017, arXiv:1608.03983) only falls; "plateau" multiplies lr by plateau_factor whenever
    the loss on val has not improved for more than plateau_patience epochs.

    lr_factors: pairs (name of a module, factor by which its learning rate is multiplied). For a module inside another,
    the longer name counts; for all that is not named, the factor is 1. Small factors for early layers keep what they
    have learned elsewhere (discriminative fine-tuning: Howard & Ruder 2018, arXiv:1801.06146). 0 freezes: weights and
    the statistics of norms stay as they are, and dropout is off.

    clip: largest norm of the gradient of all weights together (Pascanu et al. 2013, arXiv:1211.5063); 0: no limit.
    ema: decay per step of a moving average of the weights, reached gradually, which is what is judged on val and kept
    (Polyak & Juditsky 1992); 0: off. patience: stop after this many epochs without a better one on val; 0: never.

    For classifiers: label_smoothing and focal_gamma as in tasks.cross_entropy; class_weights "balanced": as in
    tasks.balanced_weights.

    precision: "fp32", "bf16", or "auto": as train.choose_precision says.
    """

    epochs: int = 24
    batch_size: int = 128
    optimizer: str = "sgd"
    lr: float = 0.05
    lr_factors: tuple[tuple[str, float], ...] = ()
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_all: bool = False
    schedule: str = "one_cycle"
    warmup: float = 0.15
    warmup_from: float = 0.04
    final: float = 0.0
    plateau_factor: float = 0.1
    plateau_patience: int = 3
    clip: float = 0.0
    ema: float = 0.0
    patience: int = 0
    label_smoothing: float = 0.1
    focal_gamma: float = 0.0
    class_weights: str = "none"
    augment: Augment = field(default_factory=Augment)
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that cannot train: ValueError names the field."""
        for name, least in {"epochs": 1, "batch_size": 1, "patience": 0, "plateau_patience": 0, "seed": 0}.items():
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
