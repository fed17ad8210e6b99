"""A ResNet as an image tower: `transformers`' own, its pooled map made a vector, which is all that a dual encoder lacks.

Batch normalisation would make a step's result depend on how the batch is shared among processes and parts. So a tower from random
weights has group normalisation (Wu and He, 2018) in its place, and a pretrained one keeps the statistics that it came with. Importing
this module makes the tower known to `transformers`; its checkpoints load where it has been imported, as `load_model` does. Who scores
pictures with one finds it by the package's entry point `winnow_resnet` in the group `winnow.architectures`.
"""

import math
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModel, ResNetConfig, ResNetModel

_GROUPS = 32


class PooledResNetConfig(ResNetConfig):  # type: ignore[misc]
    """ResNet's configuration, with the width of what is pooled by the name that a dual encoder asks for."""

    model_type = "winnow_resnet"
    hidden_size: int = 2048
    normalization: str = "group"  # or "batch": with fixed statistics, those of a pretrained tower


class PooledResNetModel(ResNetModel):  # type: ignore[misc]
    """A ResNet that pools a picture to a vector (n, width)."""

    config_class = PooledResNetConfig

    def __init__(self, config: PooledResNetConfig) -> None:
        super().__init__(config)
        if config.normalization == "group":
            _replace_norms(self)

    def forward(self, pixel_values: Any, **options: Any) -> Any:
        """Return what ResNet returns, the pooled output without its height and width of one."""
        options["return_dict"] = True
        output = super().forward(pixel_values, **options)
        output.pooler_output = output.pooler_output.flatten(1)
        return output

    def train(self, mode: bool = True) -> "PooledResNetModel":
        """Set the mode of everything but batch normalisation, whose statistics stay."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def pretrained_config(config: ResNetConfig) -> PooledResNetConfig:
    """Return the configuration with which a pretrained ResNet becomes a tower."""
    own = {key: value for key, value in config.to_dict().items() if key != "model_type"}
    return PooledResNetConfig(**{**own, "hidden_size": config.hidden_sizes[-1], "normalization": "batch"})


def _replace_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(math.gcd(_GROUPS, child.num_features), child.num_features))
        else:
            _replace_norms(child)


AutoConfig.register(PooledResNetConfig.model_type, PooledResNetConfig, exist_ok=True)
AutoModel.register(PooledResNetConfig, PooledResNetModel, exist_ok=True)
