"""The settings of the towers beyond their shape: what they start from, what is locked for how long, how much of a picture they see."""

from dataclasses import dataclass

from schemas.errors import InputError


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """How the towers begin and how they are trained.

    TowerConfig(image="google/vit-base-patch16-224-in21k", image_revision="b4569...", image_locked_steps=-1)     # LiT
    TowerConfig(image="runs/mae", text="models/bert", text_locked_steps=1000)
    TowerConfig(patch_share=0.5)              # FLIP: half of the patches, drawn anew every time
    TowerConfig(row_patches=512)              # NaViT: rows of 512 patches, several pictures in each
    TowerConfig(context_length=248)           # Long-CLIP, with `init` naming a CLIP of 77 tokens
    TowerConfig(text="models/bert", context_length=32)      # CiT: a BERT of 512 tokens that reads 32
    """

    image: str = (
        ""  # folder or hub id of a pretrained image tower, or of a CLIP whose tower is taken; its projection is new
    )
    image_revision: str = ""  # the commit of a hub id
    text: str = ""  # the same for the text tower, which brings its tokenizer
    text_revision: str = ""
    image_locked_steps: int = (
        0  # steps before the image tower is trained; -1: never. A projection made anew is trained from the start
    )
    text_locked_steps: int = 0  # the same for the text tower
    patch_share: float = 1.0  # share of a picture's patches that a ViT sees in training
    row_patches: int = 0  # NaViT: patches in a row of packed pictures; 0: those of the largest picture of the batch
    context_length: int = 0  # stretch the text tower's positions to so many tokens, or cut them; 0: as they are

    def __post_init__(self) -> None:
        for name in ("image", "text"):
            if getattr(self, f"{name}_revision") and not getattr(self, name):
                raise InputError(f"towers.{name}_revision is given without towers.{name}")
            if getattr(self, f"{name}_locked_steps") < -1:
                raise InputError(f"towers.{name}_locked_steps must be -1 or more")
        if not 0 < self.patch_share <= 1:
            raise InputError(f"towers.patch_share must be above 0 and at most 1, got {self.patch_share}")
        if self.row_patches < 0:
            raise InputError(f"towers.row_patches must not be negative, got {self.row_patches}")
        if self.context_length and self.context_length < 3:
            raise InputError(
                f"towers.context_length must be at least 3 (begin, one token, end), or 0, got {self.context_length}"
            )
