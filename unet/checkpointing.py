"""Activation checkpointing: less memory for more time, by recomputing activations in the backward pass.

The usual ways go wrong twice. Reentrant checkpointing loses the gradients of a block whose input needs none, such as
an image. And a recomputed block updates the running statistics of its batch normalisations twice. Here recomputation
works on temporary copies of those buffers, so the statistics, including the counter, are those of one pass, bit for
bit.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint


def checkpointed(function: Callable[..., Tensor], *inputs: Tensor, owner: nn.Module) -> Tensor:
    """Return the function's value; the backward pass recomputes its activations.

    Args:
        function: Deterministic function of the inputs and of the owner's parameters.
        *inputs: Kept for the backward pass.
        owner: Module with all batch normalisations of the function.
    """
    if torch.compiler.is_compiling():
        # The compiler traces one pass without mutations and recomputes for the backward pass: buffers are written once.
        return checkpoint(function, *inputs, use_reentrant=False)
    return checkpoint(
        function,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,  # nothing in a U-Net is random
        context_fn=partial(_contexts, owner),
    )


def _contexts(owner: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _on_copies(owner)


@contextmanager
def _on_copies(owner: nn.Module) -> Iterator[None]:
    """Have batch normalisations update copies of their statistics, and restore the originals."""
    norms = [module for module in owner.modules() if isinstance(module, _NormBase)]
    originals = [dict(norm._buffers) for norm in norms]
    try:
        for norm in norms:
            for name, buffer in norm._buffers.items():
                norm._buffers[name] = None if buffer is None else buffer.clone()
        yield
    finally:
        for norm, buffers in zip(norms, originals, strict=True):
            norm._buffers.update(buffers)
