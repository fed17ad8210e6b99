from pathlib import Path

import pytest
import torch
from torch.nn import functional

from schemas.errors import InputError
from train.config import ModelConfig
from train.cut import cut
from train.model import ImageTextModel, build_model, load_model
from train.tokenizer import train_tokenizer

TEXT = {"text_width": 64, "text_layers": 1, "text_heads": 2, "context_length": 16, "embed_dim": 24, "image_size": 32}
SHAPES = {
    "vit": ModelConfig(patch_size=8, image_width=64, image_layers=1, image_heads=2, **TEXT),
    "convnext": ModelConfig(image_tower="convnext", patch_size=4, image_depths=(1, 1), image_widths=(16, 32), **TEXT),
    "resnet": ModelConfig(image_tower="resnet", image_depths=(1, 1), image_widths=(32, 64), **TEXT),
}
TEXTS = ["a red dog", "two blue cats on a mat"]


def write_model(folder: Path, shape: str) -> ImageTextModel:
    model = build_model(SHAPES[shape], train_tokenizer([*TEXTS] * 3, 560, 16), seed=1).eval()
    folder.mkdir()
    model.save(folder)
    model.tokenizer.save_pretrained(folder)
    return model


def images() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_embeddings_are_the_first_numbers_at_length_one(shape: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "whole", shape)
    assert cut(str(tmp_path / "whole"), 5, str(tmp_path / "deep" / "cut")) == tmp_path / "deep" / "cut"
    found = load_model(tmp_path / "deep" / "cut")
    assert found.embed_dim == 5
    for encode, given in (("encode_image", images()), ("encode_text", TEXTS)):
        whole, short = getattr(model, encode)(given), getattr(found, encode)(given)
        torch.testing.assert_close(short, functional.normalize(whole[:, :5], dim=-1))
    assert torch.equal(found.logit_scale, model.logit_scale)
    assert found.context_length == model.context_length
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "deep" / "cut").iterdir()}
    assert modes == {(tmp_path / "deep").stat().st_mode & 0o666}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["cut"]


def test_a_cut_model_is_cut_again_and_what_a_stopped_attempt_left_is_no_trouble(tmp_path: Path) -> None:
    write_model(tmp_path / "whole", "vit")
    (tmp_path / ".half.staging").mkdir()
    (tmp_path / ".half.staging" / "junk").write_text("x")
    cut(str(tmp_path / "whole"), 12, str(tmp_path / "half"))
    assert not (tmp_path / "half" / "junk").exists()
    cut(str(tmp_path / "half"), 3, str(tmp_path / "quarter"))
    cut(str(tmp_path / "whole"), 3, str(tmp_path / "at_once"))
    names = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("quarter", "at_once")]
    assert names[0] == names[1]


def test_what_cannot_be_cut(tmp_path: Path) -> None:
    from transformers import SiglipConfig, SiglipModel

    model = write_model(tmp_path / "whole", "vit")
    for width in (0, 24, 100):
        with pytest.raises(InputError, match=f"width must be from 1 to 23, below the model's 24, got {width}"):
            cut(str(tmp_path / "whole"), width, str(tmp_path / "cut"))
    with pytest.raises(InputError, match="whole is there already; give the new model a folder of its own"):
        cut(str(tmp_path / "whole"), 5, str(tmp_path / "whole"))
    with pytest.raises(InputError, match="is neither a run with a checkpoint nor a model folder"):
        cut(str(tmp_path / "nowhere"), 5, str(tmp_path / "cut"))
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={**sizes, "vocab_size": 560, "max_position_embeddings": 12, "projection_size": 32},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
    )
    SiglipModel(config).save_pretrained(tmp_path / "siglip")
    model.tokenizer.save_pretrained(tmp_path / "siglip")
    with pytest.raises(InputError, match="is a SiglipModel without visual_projection, so its embedding cannot be cut"):
        cut(str(tmp_path / "siglip"), 5, str(tmp_path / "cut"))
    assert not (tmp_path / "cut").exists()
