"""Models of PyTorch to compare with, with random parameters."""

import numpy as np


def with_random_parameters(model, scale: float = 1 / 3):
    """The model, to be evaluated, its parameters normal with this deviation."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    return model.eval()


def tensors_of(model) -> dict[str, np.ndarray]:
    """Its state dict as numpy arrays."""
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}
