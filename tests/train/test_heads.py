import torch

from train.distributed import World
from train.heads import BatchNorm, Projector, num_heads


def test_batch_norm_is_torchs() -> None:
    rows = torch.randn(7, 5) * 3 + 2
    ours, theirs = BatchNorm(5), torch.nn.BatchNorm1d(5)
    with torch.no_grad():
        for module in (ours, theirs):
            module.weight.copy_(torch.arange(1.0, 6.0))
            module.bias.copy_(torch.arange(5.0))
    torch.testing.assert_close(ours(rows, World()), theirs(rows))
    assert len(list(BatchNorm(5, is_affine=False).parameters())) == 0


def test_projector_is_its_layers_in_order() -> None:
    torch.manual_seed(0)
    projector = Projector((6, 8, 8, 4), is_last_normalised=True)
    rows = torch.randn(9, 6)
    hidden = rows
    for number, layer in enumerate(projector.layers):
        hidden = torch.nn.functional.batch_norm(layer(hidden), None, None, training=True)
        hidden = torch.relu(hidden) if number < 2 else hidden
    torch.testing.assert_close(projector(rows, World()), hidden)
    assert Projector((6, 8, 4))(rows, World()).mean(0).abs().max() > 1e-3  # the end is left as it is


def test_heads_divide_the_width() -> None:
    assert [num_heads(width) for width in (512, 768, 64, 96, 10)] == [8, 12, 1, 1, 1]
