"""What the profile makes of a GPU's kernels."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "infra/bench"


@pytest.fixture(scope="module")
def gpu_profile() -> ModuleType:
    sys.path.insert(0, str(BENCH))
    try:
        spec = importlib.util.spec_from_file_location("gpu_profile", BENCH / "gpu_profile.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCH))
    return module


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_sm90_tst_320x128_64x3_1x2_h_bz_coopB_NNT", "product"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26", "attention"),
        ("void cudnn::fusion::convert_dq_to_16bits<true>(void const*)", "attention"),
        ("sm90_xmma_dgrad_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc", "convolution"),
        ("void cudnn::engines_precompiled::nchwToNhwcKernel<__nv_bfloat16>", "layout"),
        ("triton_poi_fused_cat_gelu_gelu_backward_mul_split_view_2", "compiled"),
        ("void at::native::(anonymous namespace)::RowwiseMomentsCUDAKernel<c10::BFloat16>", "norm"),
        ("Memset (Device)", "copy"),
        (
            "void at::native::vectorized_elementwise_kernel<8, at::native::CUDAFunctor_add<c10::BFloat16>>",
            "elementwise",
        ),
        ("void at::native::(anonymous namespace)::upsample_nearest2d_out_frame<c10::BFloat16>", "other"),
    ],
)
def test_kinds_are_told_from_names(gpu_profile: ModuleType, kernel: str, kind: str) -> None:
    assert gpu_profile.kind_of(kernel) == kind


def test_time_in_which_kernels_overlap_is_counted_once(gpu_profile: ModuleType) -> None:
    kernels = [("a", 0.0, 1000.0), ("c", 5000.0, 6000.0), ("b", 500.0, 2000.0), ("d", 600.0, 700.0)]
    assert gpu_profile.busy_ms(kernels) == 3.0
