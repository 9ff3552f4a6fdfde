"""Training and evaluation mode of an exported model, its fake-quantizers included."""

from __future__ import annotations

from torch import fx
from torch.ao.quantization import FakeQuantizeBase
from torchao.quantization.pt2e import move_exported_model_to_eval, move_exported_model_to_train


def train_exported(model: fx.GraphModule) -> fx.GraphModule:
    """Put a model of ``prepare_qat_pt2e`` in training mode.

    Exported models refuse ``.train()``; torchao's ``move_exported_model_to_train`` switches dropout and batch
    normalization, but not whether fake-quantizers learn. This does both.

    Args:
        model: The model; it is changed.

    Returns:
        The model.
    """
    return _switch(model, True)


def eval_exported(model: fx.GraphModule) -> fx.GraphModule:
    """Put a model of ``prepare_qat_pt2e`` in evaluation mode: no range moves, and nothing is dropped out.

    Args:
        model: The model; it is changed.

    Returns:
        The model.

    Example:
        >>> exported = torch.export.export(network.train(), (inputs,)).module()
        >>> with torch.no_grad():
        ...     y = eval_exported(exported)(inputs)
        >>> graph = train_exported(exported)
    """
    return _switch(model, False)


def _switch(model: fx.GraphModule, training: bool) -> fx.GraphModule:
    (move_exported_model_to_train if training else move_exported_model_to_eval)(model)
    for module in model.modules():
        if isinstance(module, FakeQuantizeBase):
            module.train(training)
    return model
