"""Settings of stage 2: of its loss, its classes and its sample sheets."""

import math
from dataclasses import dataclass
from typing import Literal

from aimamba.config import check
from aimamba.generation.sampling import LARGEST_SCALE, LARGEST_TOP_K
from aimamba.train.parts import MODULES, Part
from aimamba.train.random_order import RandomOrder
from aimamba.train.rear import CodeNoise

_MOST_SCALE, _MOST_SHOWN = 100, 100

Classes = Literal["match", "extend", "number", "new"]


@dataclass(frozen=True, kw_only=True)
class GeneratorTaskConfig:
    """Settings of the loss and of the sample sheets.

    Attributes:
        objective: What is minimised. ``likelihood``: the cross entropy of the codes. ``cca``: condition contrastive
            alignment (arXiv 2410.09347), which turns a model that needs guidance into one that does not; see
            ``aimamba.train.contrastive``. ``distillation``: the divergence from what the model was with guidance, see
            ``aimamba.train.distillation``. Both need ``init``, which must know all conditions of the images.
        cca_beta: Scale of the logarithm of the likelihood ratio of an image to ``init``.
        cca_lambda: How much images with the condition of another one count, against those with their own.
        distilled_scale: Scale of guidance that ``distillation`` teaches, above 1.
        tokenizer: The tokenizer that makes the codes: a training run, a saved model, or a hub id. By default that of
            ``init``.
        foreign_tokenizer: Whether ``init`` may go on with another tokenizer than the one it was trained with.
        classes: The classes of a generator that starts from ``init``. ``match``: those of the images; one that has the
            name of a class of ``init`` starts with its vector, and others with that of the null class. ``extend``:
            those of ``init`` stay, and those of the images that it does not have by name are added. ``number``: those
            of the images, with the vectors of ``init`` by number. ``new``: those of the images, all starting with the
            vector of the null class.
        text_encoder: A frozen sentence encoder that reads the captions, in place of byte-pair tokens: ``minilm``, or a
            folder, see ``aimamba.networks.sentence``. Only for a generator that takes captions.
        train: The parts that are trained if there is ``init``; the others keep its weights. ``classes`` is the table of
            class vectors, ``captions`` the encoder of captions, ``embeddings`` those of codes and positions, with the
            head that is tied to them, ``adaln`` the projections of the condition vector, and ``blocks`` mixers and
            norms. ``auto`` is all of them, and with LoRA the classes.
        lora_rank: Rank of the matrices that LoRA adds to frozen layers; 0 is no LoRA. It needs ``init`` and the extra
            ``aimamba[lora]``. The run then saves only the matrices and the other parts that are trained.
        lora_alpha: The product of the two matrices of a layer counts ``lora_alpha / lora_rank``. By default
            ``lora_alpha`` is the rank, so the factor is 1.
        lora_layers: The linear layers that get such matrices, by the last part of their names.
        label_dropout: Fraction of examples that are trained with the null class instead of their own, and without a
            caption, which classifier-free guidance needs. It applies to the class token and the condition together.
        class_dropout: Of a generator that takes captions: fraction of the others that are trained without their class,
            so that a prompt can stand alone.
        caption_dropout: Likewise of those that are trained without their caption, so that a class can stand alone.
        token_dropout: Fraction of the features of the word embeddings that are set to zero; the others are scaled up.
        label_smoothing: Share of each target that all codes get in equal parts (arXiv 1512.00567). This counts in the
            loss of training, not in that of held-out images.
        code_noise: Fraction of the codes that the model reads which are replaced by random ones; it still predicts the
            right ones. It learns to recover from its own mistakes, to rely on the condition, and memorises later
            (a part of reAR, arXiv 2510.04450).
        code_noise_until: Step, counted from 0, until which that fraction falls linearly to ``code_noise_end``; 0 keeps
            it constant. reAR takes three quarters of the steps, from 1.0 to 0.
        code_noise_end: Fraction from that step on.
        code_noise_varied: Whether each image has a fraction of its own, uniform between 0 and that of the step, as in
            reAR.
        rear_weight: Weight of the other part of reAR: heads on two hidden states, which no saved model has, recover the
            tokenizer's vector of the code just read, and predict that of the next one. The weight is that of the sum
            of their cosine distances; 0 is no heads, and reAR takes 1.
        rear_recover_after: Number of blocks after which the vector of the code just read is recovered.
        rear_predict_after: Number of blocks after which that of the next code is predicted; 0 is the block at three
            quarters of the depth.
        random_order: Fraction of the images whose codes are read and predicted in a random order, in the first steps;
            each input is told which place comes next (RAR, arXiv 2411.00776). RAR begins with 1. Sampling is in raster
            order in any case.
        random_order_since: Step, counted from 0, from which on that fraction falls linearly; RAR takes half of the
            steps.
        random_order_until: Step from which on it is 0; RAR takes three quarters of the steps.
        checkpointing: Whether to store only the inputs of the blocks for the backward pass and compute the rest again.
            It takes less memory and the time of a second forward pass; the result is the same.
        sheet_pictures: Images of each class on a sample sheet.
        sheet_cfg_scale: Guidance scale of the sample sheet.
        sheet_top_k: Top-k of the sample sheet; 0 samples from all codes.
    """

    objective: Literal["likelihood", "cca", "distillation"] = "likelihood"
    cca_beta: float = 0.02
    cca_lambda: float = 100.0
    distilled_scale: float = 2.0
    tokenizer: str = ""
    foreign_tokenizer: bool = False
    classes: Classes = "match"
    text_encoder: str = ""
    train: Literal["auto", "all"] | Part | tuple[Part, ...] = "auto"
    lora_rank: int = 0
    lora_alpha: float | None = None
    lora_layers: tuple[str, ...] = ("in_proj", "out_proj")
    label_dropout: float = 0.1
    class_dropout: float = 0.5
    caption_dropout: float = 0.1
    token_dropout: float = 0.0
    label_smoothing: float = 0.0
    code_noise: float = 0.0
    code_noise_until: int = 0
    code_noise_end: float = 0.0
    code_noise_varied: bool = False
    rear_weight: float = 0.0
    rear_recover_after: int = 1
    rear_predict_after: int = 0
    random_order: float = 0.0
    random_order_since: int = 0
    random_order_until: int = 0
    checkpointing: bool = False
    sheet_pictures: int = 4
    sheet_cfg_scale: float = 2.0
    sheet_top_k: int = 0

    def __post_init__(self) -> None:
        self.noise.check()
        self.order.check()
        for name in ("cca_beta", "cca_lambda"):
            check(0 < getattr(self, name) < math.inf, f"task.{name} must be positive, got {getattr(self, name)}")
        check(
            1 < self.distilled_scale <= _MOST_SCALE,
            f"task.distilled_scale must be above 1, which is no guidance, and at most {_MOST_SCALE}, got "
            f"{self.distilled_scale}",
        )
        check(
            self.objective != "distillation" or self.label_dropout < 1,
            "task.label_dropout = 1 leaves all images without a condition, so there is no guidance to distil",
        )
        for name in ("cca_beta", "cca_lambda", "distilled_scale"):
            objective = "distillation" if name == "distilled_scale" else "cca"
            check(
                self.objective == objective or getattr(self, name) == type(self).__dataclass_fields__[name].default,
                f"task.{name} is for task.objective = '{objective}'; leave it out, or set that too",
            )
        for name, least in (("rear_weight", 0), ("rear_recover_after", 1), ("rear_predict_after", 0)):
            value = getattr(self, name)
            check(least <= value < math.inf, f"task.{name} must be at least {least}, got {value}")
        for name in ("rear_weight", "random_order", "label_smoothing"):
            check(
                self.objective == "likelihood" or not getattr(self, name),
                f"task.{name} goes with task.objective = 'likelihood'; set one of them alone",
            )
        for name in ("label_dropout", "class_dropout", "caption_dropout"):
            check(0 <= getattr(self, name) <= 1, f"task.{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("token_dropout", "label_smoothing"):
            check(0 <= getattr(self, name) < 1, f"task.{name} must lie in [0, 1), got {getattr(self, name)}")
        fits = 1 <= self.sheet_pictures <= _MOST_SHOWN
        check(fits, f"task.sheet_pictures must be from 1 to {_MOST_SHOWN}, got {self.sheet_pictures}")
        for name, most in (("sheet_cfg_scale", LARGEST_SCALE), ("sheet_top_k", LARGEST_TOP_K)):
            value = getattr(self, name)
            check(0 <= value <= most, f"task.{name} must be from 0 to {most:,.0f}, got {value}")
        check(self.lora_rank >= 0, f"task.lora_rank must not be negative, got {self.lora_rank}")
        alpha = self.lora_alpha
        check(alpha is None or 0 < alpha < math.inf, f"task.lora_alpha must be positive, got {alpha}")
        check(bool(self.lora_layers), "task.lora_layers names no layer; leave it out for in_proj and out_proj")
        check(
            len(set(self.parts)) == len(self.parts) > 0,
            f"task.train must name each part once, and one at least, got {list(self.parts)}",
        )
        whole = self.lora_rank > 0 and "blocks" in self.parts
        check(
            not whole,
            "task.train trains the blocks whole, which LoRA is to spare; leave it out, or name other parts as in "
            '["classes", "adaln"]',
        )

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that are trained whole."""
        if self.train == "auto":
            return ("classes",) if self.lora_rank else tuple(MODULES)
        if self.train == "all":
            return tuple(MODULES)
        return self.train if isinstance(self.train, tuple) else (self.train,)

    @property
    def noise(self) -> CodeNoise:
        """The codes that the model reads and that are random ones."""
        return CodeNoise(self.code_noise, self.code_noise_end, self.code_noise_until, self.code_noise_varied)

    @property
    def order(self) -> RandomOrder:
        """The images that are read in a random order."""
        return RandomOrder(self.random_order, self.random_order_since, self.random_order_until)

    def unfinished(self, steps: int) -> list[str]:
        """Return a note for each schedule that ends after the last of ``steps`` steps, where one is set."""
        ends = {"code_noise": self.code_noise_until, "random_order": self.random_order_until}
        return [
            f"note: task.{name} is still changing at the end: task.{name}_until = {end}, fit.steps = {steps}"
            for name, end in ends.items()
            if getattr(self, name) and end > steps
        ]

    @property
    def rear_after(self) -> dict[str, int]:
        """The numbers of blocks that ``VectorHeads`` takes."""
        return {"recover_after": self.rear_recover_after, "predict_after": self.rear_predict_after}

    @property
    def alpha(self) -> float:
        """``lora_alpha``, or the rank where it is not set."""
        return float(self.lora_rank) if self.lora_alpha is None else self.lora_alpha

    @property
    def of_init(self) -> tuple[str, ...]:
        """The settings that are set and that only a generator with ``init`` has."""
        defaults = {
            "objective": "likelihood",
            "classes": "match",
            "train": "auto",
            "lora_rank": 0,
            "foreign_tokenizer": False,
        }
        return tuple(name for name, default in defaults.items() if getattr(self, name) != default)

    def check_start(self, init: str | None) -> None:
        """Check the settings that only a generator with ``init`` has.

        Raises:
            ConfigError: One of them is set, and there is no ``init``.
        """
        for name in self.of_init:
            check(
                init is not None,
                f"task.{name} is for a generator that starts from another one; name that in 'init' or with --init",
            )
        check(
            bool(self.tokenizer) or init is not None, "task.tokenizer is missing; give the tokenizer with --tokenizer"
        )
