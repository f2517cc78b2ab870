"""NHWC activations, and whether they really have NHWC strides.

`to(memory_format=channels_last)` sets strides once and nothing keeps them: ZeRO lays the weights out anew in its flat
vector, diffusers' transformers and res-blocks call `contiguous()`, and a GPU's GroupNorm hands back NCHW whatever it
was given. So each convolution takes care of its own input here; convolutions then compute and answer in NHWC, and
transformers hand their tokens, which are NHWC already, back without a copy.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn
from torch.utils.hooks import RemovableHandle


class WrongStrides(RuntimeError):
    """Activations that should be NHWC are not."""


def keep_channels_last(unet: nn.Module) -> None:
    """Let every convolution see NHWC strides; its weights follow in the same call where they are NCHW."""
    for module in unet.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(_to_channels_last)
        elif isinstance(module, Transformer2DModel):
            assert module.use_linear_projection and hasattr(module, "_get_output_for_continuous_inputs")
            module._get_output_for_continuous_inputs = MethodType(_tokens_to_pixels, module)


def has_channels_last_strides(tensor_BCHW: torch.Tensor) -> bool:
    """Return whether the channels of a pixel lie together in memory, from the strides alone.

    `is_contiguous(memory_format=torch.channels_last)` passes over the strides of dimensions of length 1, so it also
    says yes to NCHW tensors of one channel or one pixel.
    """
    _, channels, height, width = tensor_BCHW.shape
    _, *strides = tensor_BCHW.stride()
    return strides == [1, width * channels, channels]


class StrideCheck:
    """Watches the convolutions of one forward pass and then says which of them left NHWC."""

    def __init__(self, unet: nn.Module) -> None:
        self.seen: dict[str, bool] = {}
        self._hooks: list[RemovableHandle] = [
            module.register_forward_hook(self._note(name))
            for name, module in unet.named_modules()
            if isinstance(module, nn.Conv2d)
        ]

    def finish(self) -> None:
        """Stop watching; raise WrongStrides naming the first convolution whose output was not NHWC."""
        for hook in self._hooks:
            hook.remove()
        assert self.seen, "no forward pass was watched"
        wrong = [name for name, is_nhwc in self.seen.items() if not is_nhwc]
        if wrong:
            raise WrongStrides(
                f"speed.channels_last: {len(wrong)} of {len(self.seen)} convolutions answer with other strides than"
                f" NHWC, the first of them {wrong[0]}; set it to false"
            )

    def _note(self, name: str) -> Any:
        def note(_module: nn.Module, _inputs: Any, output_BCHW: torch.Tensor) -> None:
            self.seen[name] = has_channels_last_strides(output_BCHW)

        return note


def _tokens_to_pixels(
    module: nn.Module,
    hidden_states: torch.Tensor,
    residual: torch.Tensor,
    batch_size: int,
    height: int,
    width: int,
    inner_dim: int,
) -> torch.Tensor:
    """Take the place of diffusers' own method, which copies the tokens to NCHW before it adds the residual."""
    pixels_BHWC = module.proj_out(hidden_states).reshape(batch_size, height, width, inner_dim)
    return pixels_BHWC.permute(0, 3, 1, 2) + residual


def _to_channels_last(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(tensor_BCHW.contiguous(memory_format=torch.channels_last) for tensor_BCHW in inputs)
