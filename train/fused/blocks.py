"""diffusers' res-blocks and transformers computed by the fused kernels; their parameters stay where they are."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from types import MethodType
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from train.fused.add_bias import add_bias
from train.fused.geglu import geglu
from train.fused.group_norm import group_norm
from train.fused.layer_norm import add_layer_norm, layer_norm


def fuse_blocks(unet: UNet2DConditionModel, kernel: SDPBackend | None = None) -> None:
    """Let blocks compute norms, activations, residuals and the biases beside them in fused kernels.

    `kernel` is that of the attention; None lets torch choose. Raises AssertionError for blocks that SDXL's networks
    do not have.
    """
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D):
            assert module.time_embedding_norm == "default" and module.output_scale_factor == 1.0
            assert module.upsample is None and module.downsample is None and not module.dropout.p
            assert not module.skip_time_act and isinstance(module.nonlinearity, nn.SiLU)
            module.forward = MethodType(_res_block, module)
        elif isinstance(module, Transformer2DModel):
            module.norm.forward = MethodType(_norm, module.norm)
        elif isinstance(module, BasicTransformerBlock):
            assert module.norm_type == "layer_norm" and module.pos_embed is None and module._chunk_size is None
            assert not module.only_cross_attention and isinstance(module.ff.net[0], GEGLU)
            for attention in (module.attn1, module.attn2):
                assert not attention.residual_connection and attention.rescale_output_factor == 1.0
                assert attention.norm_q is None and attention.to_q.bias is None
            module.forward = partial(_transformer_block, module, kernel)
    unet.conv_norm_out.forward = MethodType(_norm_and_silu, unet.conv_norm_out)
    unet.conv_act.forward = lambda normed_BCHW: normed_BCHW


def _norm(norm: nn.GroupNorm, inputs_BCHW: torch.Tensor, offset_BC: torch.Tensor | None = None, silu: bool = False):
    return group_norm(inputs_BCHW, offset_BC, norm.weight, norm.bias, norm.num_groups, norm.eps, silu)[0]


def _norm_and_silu(norm: nn.GroupNorm, inputs_BCHW: torch.Tensor) -> torch.Tensor:
    return _norm(norm, inputs_BCHW, None, silu=True)


def _res_block(block: ResnetBlock2D, inputs_BCHW: torch.Tensor, temb_BD: torch.Tensor) -> torch.Tensor:
    """The first convolution's bias and the time embedding, one number for each channel, go into the second norm."""
    hidden_BCHW = _convolve(block.conv1, _norm_and_silu(block.norm1, inputs_BCHW))
    offset_BC = block.time_emb_proj(F.silu(temb_BD)) + block.conv1.bias
    hidden_BCHW = _convolve(block.conv2, _norm(block.norm2, hidden_BCHW, offset_BC, silu=True))
    if block.conv_shortcut is None:
        return add_bias(hidden_BCHW, block.conv2.bias, inputs_BCHW)
    bias_C = block.conv2.bias + block.conv_shortcut.bias
    return add_bias(hidden_BCHW, bias_C, _convolve(block.conv_shortcut, inputs_BCHW))


def _convolve(convolution: nn.Conv2d, inputs_BCHW: torch.Tensor) -> torch.Tensor:
    """Return the convolution without its bias; its weights are laid out as NHWC once for both passes."""
    weight = convolution.weight.contiguous(memory_format=torch.channels_last)
    inputs_BCHW = inputs_BCHW.contiguous(memory_format=torch.channels_last)
    return F.conv2d(inputs_BCHW, weight, None, convolution.stride, convolution.padding)


def _transformer_block(
    block: BasicTransformerBlock,
    kernel: SDPBackend | None,
    hidden_BLD: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    encoder_hidden_states: torch.Tensor | None = None,
    encoder_attention_mask: torch.Tensor | None = None,
    *absent: Any,
    **absent_too: Any,
) -> torch.Tensor:
    """Biases of the attentions' last layers and of the GEGLU's projection are added by the kernels after them."""
    assert attention_mask is None and encoder_attention_mask is None and encoder_hidden_states is not None
    assert all(value is None for value in (*absent, *absent_too.values()))
    normed_BLD = layer_norm(hidden_BLD, block.norm1.weight, block.norm1.bias, block.norm1.eps)[0]
    branch_BLD = _attention(block.attn1, kernel, normed_BLD)
    hidden_BLD, normed_BLD = _add_and_norm(branch_BLD, block.attn1, hidden_BLD, block.norm2)
    branch_BLD = _attention(block.attn2, kernel, normed_BLD, encoder_hidden_states)
    hidden_BLD, normed_BLD = _add_and_norm(branch_BLD, block.attn2, hidden_BLD, block.norm3)
    projection = block.ff.net[0].proj
    gated_BLD = geglu(F.linear(normed_BLD, projection.weight), projection.bias)
    return block.ff.net[2](gated_BLD) + hidden_BLD


def _add_and_norm(
    branch_BLD: torch.Tensor, attention: Attention, residual_BLD: torch.Tensor, norm: nn.LayerNorm
) -> tuple[torch.Tensor, torch.Tensor]:
    bias = attention.to_out[0].bias
    return add_layer_norm(branch_BLD, bias, residual_BLD, norm.weight, norm.bias, norm.eps)[:2]


def _attention(
    attention: Attention, kernel: SDPBackend | None, inputs_BLD: torch.Tensor, context_BLD: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the output without the bias of the last layer, of self-attention where there is no context."""
    weights = (attention.to_q.weight, attention.to_k.weight, attention.to_v.weight)
    if context_BLD is None:
        projected = Projections.apply(inputs_BLD, *weights)
    else:
        projected = F.linear(inputs_BLD, weights[0]), *(F.linear(context_BLD, weight) for weight in weights[1:])
    with sdpa_kernel(kernel) if kernel else nullcontext():
        attended_BHLD = F.scaled_dot_product_attention(*(_heads(each_BLD, attention.heads) for each_BLD in projected))
    return F.linear(attended_BHLD.transpose(1, 2).flatten(2), attention.to_out[0].weight)


def _heads(tensor_BLD: torch.Tensor, heads: int) -> torch.Tensor:
    return tensor_BLD.unflatten(-1, (heads, -1)).transpose(1, 2)


class Projections(torch.autograd.Function):
    """Several linear layers of one input; the parts of its gradient are added up by the products that compute them."""

    @staticmethod
    def forward(ctx: Any, inputs_BLD: torch.Tensor, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the products, shape (B, L, rows of the weight) each."""
        ctx.save_for_backward(inputs_BLD, *weights)
        return tuple(F.linear(inputs_BLD, weight) for weight in weights)

    @staticmethod
    def backward(ctx: Any, *grads_BLD: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the gradients of the input and the weights."""
        inputs_BLD, *weights = ctx.saved_tensors
        grads = [grad_BLD.flatten(0, 1) for grad_BLD in grads_BLD]
        of_inputs = grads[0] @ weights[0]
        for grad, weight in zip(grads[1:], weights[1:], strict=True):
            of_inputs.addmm_(grad, weight)
        inputs = inputs_BLD.flatten(0, 1)
        return of_inputs.view_as(inputs_BLD), *(grad.t() @ inputs for grad in grads)
