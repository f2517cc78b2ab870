"""The fused kernels against plain torch, by Triton's interpreter on a CPU; compiled, in test_speed on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from train.channels_last import keep_channels_last
from train.fused.blocks import fuse_blocks
from train.model import meta_unet
from train.recipes import base

FOLDER = Path(__file__).parent


@pytest.mark.parametrize("part", ["geglu", "layer_norm", "group_norm", "add_bias", "blocks"])
def test_kernels_compute_what_torch_does(part: str) -> None:
    """In a process of its own: the interpreter is chosen when Triton is imported."""
    command = [sys.executable, "-m", "tests.train.fused_against_plain", part]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=FOLDER.parents[1], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "compared" in done.stdout


def test_parameters_of_fused_blocks_keep_their_names() -> None:
    unet = meta_unet(base())
    names = [(name, tuple(parameter.shape)) for name, parameter in unet.named_parameters()]
    keep_channels_last(unet)
    fuse_blocks(unet)
    assert [(name, tuple(parameter.shape)) for name, parameter in unet.named_parameters()] == names
    fused = [name for name, module in unet.named_modules() if "forward" in vars(module)]
    assert len(fused) == 70 + 17 + 11 + 2  # transformer blocks, res-blocks, transformers' norms, the end
