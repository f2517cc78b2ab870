"""Each switch gives the loss and the gradients of the plain path; strides are checked, not flags."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from train.channels_last import StrideCheck, WrongStrides, has_channels_last_strides, keep_channels_last
from train.config import TrainConfig
from train.engine import World
from train.recipes import base
from train.self_test import losses, small_config, small_unet
from train.speed import SpeedConfig
from train.switches import apply_switches

CPU = torch.device("cpu")
TOLERANCE = 1e-5
"""Largest relative difference of loss and gradient in fp32."""
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    """A base of two levels in fp32, 8 channels to a group."""
    published = base().unet
    unet = dataclasses.replace(
        published,
        norm_groups=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1),
        attention_heads=(1, 1),
    )
    plain = dataclasses.replace(base(), precision="fp32", unet=unet)
    return small_config(plain, World(rank=0, size=1, device=CPU))


def outcome(config: TrainConfig, unet: nn.Module, device: torch.device = CPU) -> tuple[torch.Tensor, torch.Tensor]:
    """Return loss and flat gradient."""
    loss = losses(config, unet, torch.float32, World(rank=0, size=1, device=device))[0]()
    gradients = torch.autograd.grad(loss, list(unet.parameters()))
    return loss.detach(), torch.cat([gradient.flatten() for gradient in gradients])


def assert_parity(
    config: TrainConfig, speed: SpeedConfig, backend: str = "inductor", device: torch.device = CPU
) -> None:
    plain = small_unet(config).to(device)
    switched = copy.deepcopy(plain)
    apply_switches(switched, speed, device, backend=backend)
    (loss, gradient), (found_loss, found_gradient) = outcome(config, plain, device), outcome(config, switched, device)
    assert abs(found_loss - loss) <= TOLERANCE * loss
    assert (found_gradient - gradient).norm() <= TOLERANCE * gradient.norm()


@pytest.mark.parametrize(
    "speed",
    [
        {"channels_last": True},
        {"attention": "math"},
        {"attention": "flash"},
        {"activation_checkpointing": "deepest"},
        {"activation_checkpointing": "transformers"},
        {"activation_checkpointing": "all"},
        {"channels_last": True, "attention": "math", "activation_checkpointing": "all"},
    ],
    ids=str,
)
def test_a_switch_keeps_loss_and_gradients(config: TrainConfig, speed: dict) -> None:
    assert_parity(config, SpeedConfig(**speed))


def test_compiled_blocks_keep_loss_and_gradients(config: TrainConfig) -> None:
    """Captured and differentiated by the compiler; its kernels for the CPU take minutes to build."""
    speed = SpeedConfig(compile=True, channels_last=True, activation_checkpointing="transformers")
    assert_parity(config, speed, "aot_eager")


@needs_gpu
@pytest.mark.parametrize("attention", ["flash", "efficient", "cudnn", "math"])
def test_attention_kernels_of_a_gpu_keep_loss_and_gradients(config: TrainConfig, attention: str) -> None:
    unet = small_unet(config).to("cuda", torch.bfloat16)
    switched = copy.deepcopy(unet)
    apply_switches(switched, SpeedConfig(attention=attention), torch.device("cuda"))
    world = World(rank=0, size=1, device=torch.device("cuda"))
    found = [losses(config, each, torch.bfloat16, world)[0]().detach() for each in (unet, switched)]
    assert abs(found[0] - found[1]) <= 2e-2 * found[0]


@needs_gpu
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_kernels_compiled_for_a_gpu_keep_loss_and_gradients(config: TrainConfig, cuda_graphs: bool) -> None:
    assert_parity(config, SpeedConfig(compile=True, cuda_graphs=cuda_graphs), device=torch.device("cuda"))


@needs_gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_fused_geglu_keeps_loss_and_gradients(config: TrainConfig, compiled: bool) -> None:
    assert_parity(config, SpeedConfig(fused_geglu=True, compile=compiled), device=torch.device("cuda"))


@needs_gpu
def test_strides_hold_on_a_gpu(config: TrainConfig) -> None:
    unet = small_unet(config).cuda()
    keep_channels_last(unet)
    watched = StrideCheck(unet)
    outcome(config, unet, torch.device("cuda"))
    watched.finish()


@pytest.mark.parametrize("fused", [False, True])
def test_fused_adamw_takes_the_same_steps(fused: bool) -> None:
    start = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    weights, plain = (start.clone().requires_grad_() for _ in range(2))
    optimizers = [
        torch.optim.AdamW([weights], lr=1e-2, fused=fused),
        torch.optim.AdamW([plain], lr=1e-2, foreach=False),
    ]
    for step in range(20):
        gradient = torch.randn(1000, generator=torch.Generator().manual_seed(step))
        for parameter, optimizer in zip((weights, plain), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert (weights - plain).abs().max() <= 1e-6
    assert (weights - start).abs().max() > 1e-2


def test_the_flag_of_a_memory_format_says_yes_where_strides_say_no() -> None:
    one_channel_BCHW = torch.zeros(2, 1, 4, 4).contiguous(memory_format=torch.channels_last)
    nchw_BCHW = torch.zeros(2, 8, 1, 1)
    assert nchw_BCHW.is_contiguous(memory_format=torch.channels_last)
    assert nchw_BCHW.stride() == (8, 1, 1, 1) and not has_channels_last_strides(nchw_BCHW)
    assert has_channels_last_strides(torch.zeros(2, 8, 4, 4).contiguous(memory_format=torch.channels_last))
    assert not has_channels_last_strides(torch.zeros(2, 8, 4, 4))
    assert one_channel_BCHW.is_contiguous(memory_format=torch.channels_last)


def test_a_group_norm_that_hands_back_nchw_is_seen_and_made_good(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU; the weights are NCHW, as ZeRO's flat vector has them."""

    def forward(self: nn.GroupNorm, input_BCHW: torch.Tensor) -> torch.Tensor:
        return F.group_norm(input_BCHW.contiguous(), self.num_groups, self.weight, self.bias, self.eps)

    monkeypatch.setattr(nn.GroupNorm, "forward", forward)
    unet = small_unet(config)
    unet.conv_in.register_forward_pre_hook(lambda _module, inputs: _nhwc(inputs[0]))
    watched = StrideCheck(unet)
    outcome(config, unet)
    with pytest.raises(
        WrongStrides, match=r"convolutions answer with other strides than NHWC, the first .* down_blocks"
    ):
        watched.finish()
    keep_channels_last(unet)
    watched = StrideCheck(unet)
    outcome(config, unet)
    watched.finish()
    assert len(watched.seen) == sum(isinstance(module, nn.Conv2d) for module in unet.modules())


def _nhwc(tensor_BCHW: torch.Tensor) -> tuple[torch.Tensor]:
    return (tensor_BCHW.contiguous(memory_format=torch.channels_last),)


def test_recomputation_keeps_fewer_activations_the_more_blocks_it_names(config: TrainConfig) -> None:
    two_widths = dataclasses.replace(config.unet, down_block_types=("CrossAttnDownBlock2D",) * 2)
    two_widths = dataclasses.replace(two_widths, up_block_types=("CrossAttnUpBlock2D",) * 2)
    config = dataclasses.replace(config, unet=two_widths)
    kept = [saved_bytes(config, blocks) for blocks in ("none", "deepest", "transformers", "all")]
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == 4, kept


def saved_bytes(config: TrainConfig, blocks: str) -> int:
    unet = small_unet(config)
    apply_switches(unet, SpeedConfig(activation_checkpointing=blocks), CPU)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = losses(config, unet, torch.float32, World(rank=0, size=1, device=CPU))[0]()
    loss.backward()
    return sum(kept.values())


@pytest.mark.parametrize(
    ("speed", "told"),
    [
        ({"attention": "cudnn"}, "speed.attention = 'cudnn': needs a GPU; a CPU has flash, math"),
        ({"cuda_graphs": True, "compile": True}, "speed.cuda_graphs = True: needs a GPU"),
        ({"fused_geglu": True}, "speed.fused_geglu = True: needs a GPU"),
    ],
)
def test_what_a_cpu_lacks_is_refused(config: TrainConfig, speed: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        apply_switches(small_unet(config), SpeedConfig(**speed), CPU)


def test_cuda_graphs_name_what_they_need() -> None:
    with pytest.raises(ValueError, match=r"speed.cuda_graphs = True: .*set speed.compile to true"):
        SpeedConfig(cuda_graphs=True)
    with pytest.raises(ValueError, match=r"set speed.activation_checkpointing to none"):
        SpeedConfig(cuda_graphs=True, compile=True, activation_checkpointing="all")
    with pytest.raises(ValueError, match=r"each of the 40 aspect buckets"):
        apply_switches(nn.Identity(), SpeedConfig(cuda_graphs=True, compile=True), torch.device("cuda"), num_buckets=40)
