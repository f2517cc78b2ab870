"""What the settings' `precision` is in torch."""

from __future__ import annotations

import torch

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
"""Weights and activations; masters, moments and averaged weights are fp32 either way."""
