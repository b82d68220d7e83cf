"""How many weights a model has, whatever their streams have in bytes."""

from __future__ import annotations

from types import MethodType

from torch import nn

from .module import CodedModule


def num_parameters(
    model: nn.Module, only_trainable: bool = False, exclude_embeddings: bool = False
) -> int:
    """As PreTrainedModel.num_parameters() counts the dense model; any module will do.

    Args:
        only_trainable: leave out what takes no gradient: coded weights, for one.
        exclude_embeddings: leave out the weights of nn.Embedding modules.
    """
    sizes: dict[int, int] = {}
    left_out: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, CodedModule):
            rows, cols = module.matrix_shape
            first, *others = map(id, module.streams)
            sizes |= {first: rows * cols, **dict.fromkeys(others, 0)}
        if exclude_embeddings and isinstance(module, nn.Embedding):
            left_out.add(f"{name}.weight")
    return sum(
        sizes.get(id(p), p.numel())
        for name, p in model.named_parameters()
        if name not in left_out and (p.requires_grad or not only_trainable)
    )


def count_weights(model: nn.Module, coded: bool = True) -> None:
    """Makes `model.num_parameters()` of a transformers model count weights instead of bytes.

    Args:
        coded: False undoes it, for a model that is dense again.
    """
    vars(model).pop("num_parameters", None)
    if coded and hasattr(model, "num_parameters"):
        vars(model)["num_parameters"] = MethodType(num_parameters, model)
