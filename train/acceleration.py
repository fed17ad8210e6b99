"""Ways to trade memory for time and start-up for speed that change no result beyond rounding."""

import logging
import shutil

from torch import nn

from schemas.errors import InputError
from train.distributed import World
from train.model import ImageTextModel

logger = logging.getLogger(__name__)

_COMPILERS = ("c++", "g++", "clang++")
# Of a tower's weights, in a stack of blocks: below, what is left uncompiled beside it counts.
_SHARE_OF_BLOCKS = 0.8


def recompute_activations(model: ImageTextModel) -> None:
    """Keep only each layer's input for the backward pass and compute the rest again: less memory for about a third more time."""
    for name in ("vision_model", "text_model"):
        tower = getattr(model.network, name)
        if not tower.supports_gradient_checkpointing:
            raise InputError(
                f"gradient_checkpointing: {type(tower).__name__} cannot compute its layers again; leave it off"
            )
        tower.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def compile_towers(model: ImageTextModel, world: World) -> None:
    """Compile both towers, in place and under their own names; texts of another length are not another program.

    Of a transformer one block is compiled, and its program serves all of them: a start of seconds where the whole tower takes minutes, for
    the same speed. Towers whose blocks differ (ConvNeXt, ResNet) are compiled whole. On a CPU a C++ compiler is needed.
    """
    if world.device.type == "cpu" and not any(shutil.which(name) for name in _COMPILERS):
        raise InputError(
            f"compile needs a C++ compiler on a CPU, and none of {', '.join(_COMPILERS)} is there; leave it off"
        )
    for part in compiled_parts(model.network.vision_model):
        part.compile()
    for part in compiled_parts(model.network.text_model):
        part.compile(dynamic=True)
    logger.info("towers are compiled at their first step device=%s", world.device)


def compiled_parts(tower: nn.Module) -> list[nn.Module]:
    """Return the blocks of a tower that is mostly one stack of like blocks, else the tower itself."""
    total = _count(tower)
    for stack in tower.modules():
        if isinstance(stack, nn.ModuleList) and len(stack) > 1 and _count(stack) > _SHARE_OF_BLOCKS * total:
            kinds = {(type(block), tuple(value.shape for value in block.parameters())) for block in stack}
            if len(kinds) == 1:
                return list(stack)
    return [tower]


def _count(module: nn.Module) -> int:
    """Count the weights of layers; tables of embeddings, which are only looked up, left aside."""
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    return sum(value.numel() for value in module.parameters() if id(value) not in tables)
