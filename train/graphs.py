"""The U-Net's forward and backward pass as two CUDA graphs for each shape of inputs.

The base has thousands of kernels a pass, and a CPU that launches them one by one falls behind a GPU with few pictures.
A graph is launched at once. All shapes (aspect buckets) share one pool of memory: nothing lives from one pair of
passes to the next but inputs, outputs and gradients, which have tensors of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

WARM_UP_PASSES = 2
"""Passes before a capture, in which libraries choose kernels and what is compiled gets compiled."""
Inputs = tuple[torch.Tensor, ...]
"""Noisy latents, timesteps, text, pooled text, time ids."""


@dataclass(frozen=True, kw_only=True)
class Captured:
    """The graphs of one shape, and the tensors that they read and write."""

    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph
    inputs: Inputs
    output_BCHW: torch.Tensor
    grad_BCHW: torch.Tensor
    """The output's gradient, which the backward graph reads."""
    graphs: Graphs
    """Whose parameters and memory they share with the graphs of other shapes."""


def replay_graphs(unet: nn.Module) -> None:
    """Let the U-Net's passes with gradients be captured at the first sight of a shape and replayed after it."""
    unet.forward = Graphs(unet)


class Graphs:
    """Takes the place of the U-Net's forward method; parameters may be moved until the first pass, not after it."""

    def __init__(self, unet: nn.Module) -> None:
        self._eager = Eager(unet)
        self.parameters = list(unet.parameters())
        self.gradients: list[torch.Tensor] = []
        """The parameters' gradients, written by the backward graph of any shape."""
        self.num_passes = 0
        """Forward passes that were replayed: each overwrites the one before."""
        self._captured: dict[tuple[Any, ...], Captured] = {}
        self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.MemPool()

    def __call__(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        added_cond_kwargs: dict[str, torch.Tensor],
        return_dict: bool = False,
    ) -> tuple[torch.Tensor]:
        """Return diffusers' tuple of the prediction; without gradients, in plain passes."""
        assert not return_dict
        added = added_cond_kwargs["text_embeds"], added_cond_kwargs["time_ids"]
        inputs = (sample, timestep, encoder_hidden_states, *added)
        if not torch.is_grad_enabled():
            return (self._eager(*inputs),)
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if shapes not in self._captured:
            self._captured[shapes] = self._capture(inputs)
        return (Replayed.apply(self._captured[shapes], *inputs, *self.parameters),)

    def _capture(self, inputs: Inputs) -> Captured:
        """Warm up and capture on one stream, in one pool: the passes before a capture then leave it their memory.

        The passes have parameters of their own on the same memory: autograd would tie the real ones to the stream on
        which hooks were hung on them, and that one cannot be captured.
        """
        if not self.gradients:
            self.gradients = [torch.empty_like(parameter) for parameter in self.parameters]
        inputs = tuple(tensor.detach().clone() for tensor in inputs)
        torch.cuda.empty_cache()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            twins = {name: nn.Parameter(parameter.detach()) for name, parameter in self._eager.named_parameters()}
            one_thread = torch.autograd.set_multithreading_enabled(False)  # the pool is for the thread that asks
            with torch.cuda.use_mem_pool(self._pool), one_thread:
                for _ in range(WARM_UP_PASSES):
                    output_BCHW = functional_call(self._eager, twins, inputs)
                    grad_BCHW = torch.empty_like(output_BCHW).normal_()
                    self._differentiate(output_BCHW, twins, grad_BCHW)
                    del output_BCHW
        torch.cuda.synchronize()
        kept = {"pool": self._pool.id, "stream": self._stream, "capture_error_mode": "thread_local"}
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(forward, **kept):
            output_BCHW = functional_call(self._eager, twins, inputs)
        with torch.cuda.graph(backward, **kept):
            self._differentiate(output_BCHW, twins, grad_BCHW)
        return Captured(
            forward=forward,
            backward=backward,
            inputs=inputs,
            output_BCHW=output_BCHW.detach(),
            grad_BCHW=grad_BCHW,
            graphs=self,
        )

    def _differentiate(
        self, output_BCHW: torch.Tensor, twins: dict[str, nn.Parameter], grad_BCHW: torch.Tensor
    ) -> None:
        found = torch.autograd.grad(output_BCHW, list(twins.values()), grad_BCHW)
        torch._foreach_copy_(self.gradients, [each.contiguous() for each in found])


class Eager(nn.Module):
    """The U-Net's own forward method, of tensors alone."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        self._forward = unet.forward

    def forward(
        self,
        noisy_BCHW: torch.Tensor,
        timesteps_B: torch.Tensor,
        text_BLD: torch.Tensor,
        pooled_BD: torch.Tensor,
        time_ids_BT: torch.Tensor,
    ) -> torch.Tensor:
        """Return the prediction."""
        added = {"text_embeds": pooled_BD, "time_ids": time_ids_BT}
        return self._forward(
            noisy_BCHW, timesteps_B, encoder_hidden_states=text_BLD, added_cond_kwargs=added, return_dict=False
        )[0]


class Replayed(torch.autograd.Function):
    """One pair of passes; the parameters are arguments so that autograd hands them their gradients."""

    @staticmethod
    def forward(ctx: Any, captured: Captured, *tensors: torch.Tensor) -> torch.Tensor:
        """Return the prediction for the inputs, which come before the parameters."""
        captured.graphs.num_passes += 1
        ctx.captured, ctx.number = captured, captured.graphs.num_passes
        torch._foreach_copy_(list(captured.inputs), list(tensors[: len(captured.inputs)]))
        captured.forward.replay()
        return captured.output_BCHW.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCHW: torch.Tensor) -> tuple[Any, ...]:
        """Return the parameters' gradients."""
        captured, graphs = ctx.captured, ctx.captured.graphs
        if ctx.number != graphs.num_passes:
            raise RuntimeError("speed.cuda_graphs: another forward pass has overwritten what this backward pass needs")
        if any(parameter.grad is not None for parameter in graphs.parameters):
            raise RuntimeError("speed.cuda_graphs: the pass before left gradients in .grad, which this one overwrites")
        captured.grad_BCHW.copy_(grad_BCHW)
        captured.backward.replay()
        none = (None,) * (1 + len(captured.inputs))
        return *none, *(gradient.detach() for gradient in graphs.gradients)
