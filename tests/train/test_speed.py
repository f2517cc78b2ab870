"""Each switch gives the loss and the gradients of the plain path; strides are checked, not flags."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from train.channels_last import StrideCheck, WrongStrides, has_channels_last_strides, keep_channels_last
from train.config import TrainConfig
from train.engine import World
from train.model import predict
from train.recipes import base
from train.self_test import losses, small_config, small_unet
from train.speed import SpeedConfig
from train.switches import apply_switches

CPU, GPU = torch.device("cpu"), torch.device("cuda")
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


def outcome(
    config: TrainConfig, unet: nn.Module, device: torch.device = CPU, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return loss and flat gradient, in fp32."""
    loss = losses(config, unet, dtype, World(rank=0, size=1, device=device))[0]()
    gradients = torch.autograd.grad(loss, list(unet.parameters()))
    return loss.detach(), torch.cat([gradient.float().flatten() for gradient in gradients])


def assert_parity(
    config: TrainConfig, speed: SpeedConfig, backend: str = "inductor", device: torch.device = CPU
) -> None:
    plain = small_unet(config).to(device)
    switched = copy.deepcopy(plain)
    apply_switches(switched, speed, device, backend=backend)
    with torch.backends.cudnn.flags(allow_tf32=False):
        for _ in range(2):  # a graph is captured in the first and replayed in the second
            loss, gradient = outcome(config, plain, device)
            found_loss, found_gradient = outcome(config, switched, device)
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


FUSED = {"channels_last": True, "fused_kernels": True}


@needs_gpu
@pytest.mark.parametrize(
    "speed",
    [
        {"compile": True},
        FUSED,
        FUSED | {"compile": True},
        {"cuda_graphs": True},
        FUSED | {"cuda_graphs": True},
        FUSED | {"cuda_graphs": True, "activation_checkpointing": "all"},
        FUSED | {"cuda_graphs": True, "compile": True},
    ],
    ids=lambda speed: "+".join(speed),
)
def test_kernels_and_graphs_of_a_gpu_keep_loss_and_gradients(config: TrainConfig, speed: dict) -> None:
    assert_parity(config, SpeedConfig(**speed), device=GPU)


@needs_gpu
def test_fused_kernels_round_no_more_than_plain_ones(config: TrainConfig) -> None:
    exact = small_unet(config).cuda()
    plain, fused = (copy.deepcopy(exact).bfloat16() for _ in range(2))
    apply_switches(fused, SpeedConfig(**FUSED), GPU)
    wanted = outcome(config, exact, GPU)[1]
    off = [(outcome(config, unet, GPU, torch.bfloat16)[1] - wanted).norm() / wanted.norm() for unet in (plain, fused)]
    assert 0.0 < off[1] <= 1.2 * off[0]


@needs_gpu
def test_graphs_of_two_shapes_take_turns_in_one_pool(config: TrainConfig) -> None:
    """Other inputs in each turn, so that a graph that read those of its capture would be seen."""
    plain = small_unet(config).cuda()
    replayed = copy.deepcopy(plain)
    apply_switches(replayed, SpeedConfig(cuda_graphs=True), GPU)
    with torch.backends.cudnn.flags(allow_tf32=False):
        for turn in range(6):
            torch.manual_seed(turn)
            inputs = inputs_of(config, height=(16, 24)[turn % 2])
            wanted, found = ((unet, gradients_of(unet, inputs)) for unet in (plain, replayed))
            assert (found[1] - wanted[1]).norm() <= TOLERANCE * wanted[1].norm()
    with torch.no_grad():
        assert torch.allclose(predict(replayed, torch.float32, **inputs), predict(plain, torch.float32, **inputs))
    assert len(replayed.forward._captured) == 2


def inputs_of(config: TrainConfig, height: int) -> dict[str, torch.Tensor]:
    unet = config.unet
    return {
        "noisy_BCHW": torch.randn(2, unet.latent_channels, height, 16, device=GPU),
        "timesteps_B": torch.randint(0, 1000, (2,), device=GPU),
        "text_BLD": torch.randn(2, 8, unet.cross_attention_dim, device=GPU),
        "pooled_BD": torch.randn(2, unet.pooled_dim, device=GPU),
        "time_ids_BT": torch.rand(2, 6, device=GPU) * 1000,
    }


def gradients_of(unet: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    loss = (predict(unet, torch.float32, **inputs) - 1.0).square().mean()
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, list(unet.parameters()))])


@needs_gpu
def test_passes_that_would_overwrite_each_other_are_refused(config: TrainConfig) -> None:
    unet = small_unet(config).cuda()
    apply_switches(unet, SpeedConfig(cuda_graphs=True), GPU)
    first, second = (predict(unet, torch.float32, **inputs_of(config, 16)).square().mean() for _ in range(2))
    with pytest.raises(RuntimeError, match="another forward pass has overwritten"):
        first.backward()
    second.backward()
    with pytest.raises(RuntimeError, match=r"left gradients in \.grad"):
        predict(unet, torch.float32, **inputs_of(config, 16)).square().mean().backward()


@needs_gpu
@pytest.mark.parametrize("shape", [(2, 320, 128, 128), (2, 960, 104, 152), (2, 2560, 32, 32)], ids=str)
def test_group_norm_of_the_published_sizes(shape: tuple[int, ...]) -> None:
    from train.fused.group_norm import group_norm

    pixels, offset, gain, shift = (torch.randn(size, device=GPU) for size in (shape, shape[:2], shape[1:2], shape[1:2]))

    def plain(pixels, offset, gain, shift):
        return F.silu(F.group_norm(pixels + offset[:, :, None, None], 32, gain, shift))

    assert_same(lambda *x: group_norm(*x, 32, 1e-5, True)[0], plain, 2 * pixels + 3, offset, gain, shift)


@needs_gpu
@pytest.mark.parametrize("shape", [(2, 4096, 640), (2, 1024, 1280)], ids=str)
def test_layer_norm_and_geglu_of_the_published_sizes(shape: tuple[int, ...]) -> None:
    from train.fused.geglu import geglu
    from train.fused.layer_norm import add_layer_norm

    width = shape[-1]
    branch, residual = torch.randn(shape, device=GPU), torch.randn(shape, device=GPU)
    bias, gain, shift = torch.randn(3, width, device=GPU)

    def plain(branch, bias, residual, gain, shift):
        return F.layer_norm(branch + bias + residual, (width,), gain, shift)

    assert_same(lambda *x: add_layer_norm(*x, 1e-5)[1], plain, branch, bias, residual, gain, shift)

    def plain_geglu(projected, bias):
        value, gate = (projected + bias).chunk(2, dim=-1)
        return value * F.gelu(gate)

    projected = torch.randn(*shape[:-1], 8 * width, device=GPU)
    assert_same(geglu, plain_geglu, projected, torch.randn(8 * width, device=GPU))


def assert_same(fused: Callable, plain: Callable, *inputs: torch.Tensor) -> None:
    """Outputs and gradients, relative to the largest number."""
    taken = [[each.clone().requires_grad_() for each in inputs] for _ in range(2)]
    outputs = [function(*each) for function, each in zip((fused, plain), taken, strict=True)]
    upstream = torch.randn_like(outputs[1])
    pairs = [outputs, *zip(*(torch.autograd.grad(output, each, upstream) for output, each in zip(outputs, taken)))]  # noqa: B905
    for found, wanted in pairs:
        assert (found - wanted).abs().max() <= TOLERANCE * wanted.abs().max()


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
        ({"attention": "cudnn"}, "speed.attention = 'cudnn': needs a GPU; set it to auto, flash or math"),
        ({"cuda_graphs": True}, "speed.cuda_graphs = True: needs a GPU; set it to false"),
        (FUSED, "speed.fused_kernels = True: needs a GPU; set it to false"),
    ],
)
def test_what_a_cpu_lacks_is_refused(config: TrainConfig, speed: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        apply_switches(small_unet(config), SpeedConfig(**speed), CPU)


def test_fused_kernels_name_what_they_need() -> None:
    with pytest.raises(ValueError, match=r"speed.fused_kernels = True: .*set speed.channels_last to true"):
        SpeedConfig(fused_kernels=True)
