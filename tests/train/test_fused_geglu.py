"""The kernels of GEGLU against plain torch: by Triton's interpreter on a CPU, compiled in test_speed on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers.models.activations import GEGLU
from torch.nn import functional as F

from train.fused_geglu import FusedGeglu
from train.model import meta_unet
from train.recipes import base
from train.switches import fuse_geglu

REPOSITORY = Path(__file__).parents[2]
INTERPRETED = """
import sys
import torch
from train import fused_geglu

inputs = torch.load(sys.argv[1], weights_only=True)
grad, projected = inputs["grad"], inputs["projected"]
gated, wanted = torch.full_like(grad, torch.nan), torch.full_like(projected, torch.nan)
width, grid = grad.shape[-1], fused_geglu.grid(grad)
fused_geglu.forward_kernel[grid](projected, gated, width, BLOCK=fused_geglu.BLOCK)
fused_geglu.backward_kernel[grid](grad, projected, wanted, width, BLOCK=fused_geglu.BLOCK)
torch.save({"gated": gated, "wanted": wanted}, sys.argv[1])
"""


@pytest.mark.parametrize("width", [40, 512, 700])
def test_kernels_compute_what_torch_does(tmp_path: Path, width: int) -> None:
    """Widths below a block, of one whole block, and of one and a part."""
    generator = torch.Generator().manual_seed(0)
    projected = torch.randn(2, 3, 2 * width, generator=generator).requires_grad_()
    grad = torch.randn(2, 3, width, generator=generator)
    value, gate = projected.chunk(2, dim=-1)
    gated = value * F.gelu(gate)
    gated.backward(grad)
    file = tmp_path / "tensors.pt"
    torch.save({"grad": grad, "projected": projected.detach()}, file)
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", INTERPRETED, str(file)], cwd=REPOSITORY, env=environment, check=True)
    found = torch.load(file, weights_only=True)
    assert torch.allclose(found["gated"], gated.detach(), atol=1e-5)
    assert torch.allclose(found["wanted"], projected.grad, atol=1e-5)


def test_every_geglu_of_the_base_is_replaced_and_its_parameters_keep_their_names() -> None:
    unet = meta_unet(base())
    names = [(name, tuple(parameter.shape)) for name, parameter in unet.named_parameters()]
    fuse_geglu(unet)
    kinds = [type(module) for module in unet.modules()]
    assert kinds.count(FusedGeglu) == 70 and kinds.count(GEGLU) == 0
    assert [(name, tuple(parameter.shape)) for name, parameter in unet.named_parameters()] == names
