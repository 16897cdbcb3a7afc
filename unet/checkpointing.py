"""Activation checkpointing: less memory for more time. Activations are dropped after the forward pass and made again.

Two things make this wrong in the usual ways. Reentrant checkpointing loses the gradients of a block whose input
needs none, as an image does. And a block that is run twice updates the running statistics of its batch
normalisations twice. Here recomputation works on copies of those buffers that are thrown away, so the
statistics, the counter included, are those of one pass, bit for bit.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint


def checkpointed(function: Callable[..., Tensor], *inputs: Tensor, owner: nn.Module) -> Tensor:
    """The function's value; its activations are made again when the backward pass needs them.

    Args:
        function: Deterministic, of the inputs and of the owner's parameters.
        *inputs: Kept until then.
        owner: Holds every batch normalisation that the function runs.
    """
    if torch.compiler.is_compiling():
        # The compiler sees one pass, mutations apart, and makes again what backward reads: buffers are written once.
        return checkpoint(function, *inputs, use_reentrant=False)
    return checkpoint(
        function,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,  # nothing in a U-Net is drawn
        context_fn=partial(_contexts, owner),
    )


def _contexts(owner: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _on_copies(owner)


@contextmanager
def _on_copies(owner: nn.Module) -> Iterator[None]:
    """Let batch normalisations update copies of their statistics, and put the true ones back."""
    norms = [module for module in owner.modules() if isinstance(module, _NormBase)]
    true = [dict(norm._buffers) for norm in norms]
    try:
        for norm in norms:
            for name, buffer in norm._buffers.items():
                norm._buffers[name] = None if buffer is None else buffer.clone()
        yield
    finally:
        for norm, buffers in zip(norms, true, strict=True):
            norm._buffers.update(buffers)
