"""FID, KID and CMMD: how far apart two sets of features are. Shape legend: N pictures, D feature width."""

from __future__ import annotations

import numpy as np
import torch
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
BLOCK_ROWS = 1024


def fid(real_ND: np.ndarray, drawn_ND: np.ndarray) -> float:
    """Return the Frechet distance of two normal distributions fitted to the features (Heusel et al. 2017)."""
    statistics = [fid_features_to_statistics(torch.from_numpy(each_ND).double()) for each_ND in (real_ND, drawn_ND)]
    return float(fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID])


def kid(real_ND: np.ndarray, drawn_ND: np.ndarray, *, subsets: int, subset_size: int, seed: int) -> tuple[float, float]:
    """Return mean and standard deviation over subsets of the unbiased MMD^2 with a cubic kernel (Binkowski 2018)."""
    found = kid_features_to_metric(
        torch.from_numpy(drawn_ND).double(),
        torch.from_numpy(real_ND).double(),
        kid_subsets=subsets,
        kid_subset_size=min(subset_size, len(real_ND), len(drawn_ND)),
        kid_kernel="poly",
        rng_seed=seed,
        verbose=False,
    )
    return float(found[KEY_METRIC_KID_MEAN]), float(found[KEY_METRIC_KID_STD])


def cmmd(real_ND: np.ndarray, drawn_ND: np.ndarray) -> float:
    """Return 1,000 times the biased MMD^2 of unit CLIP embeddings, Gaussian kernel of width 10 (Jayasumana 2024)."""
    real, drawn = (torch.from_numpy(each_ND).double() for each_ND in (real_ND, drawn_ND))
    apart = _mean_kernel(real, real) + _mean_kernel(drawn, drawn) - 2.0 * _mean_kernel(real, drawn)
    return CMMD_SCALE * apart


def _mean_kernel(one_ND: torch.Tensor, other_MD: torch.Tensor) -> float:
    """Return the mean of exp(-|x - y|^2 / (2 sigma^2)) over all pairs, a block of rows at a time."""
    total = 0.0
    for rows_BD in one_ND.split(BLOCK_ROWS):
        squared_BM = torch.cdist(rows_BD, other_MD, compute_mode="donot_use_mm_for_euclid_dist").square()
        total += float(torch.exp(-squared_BM / (2.0 * CMMD_SIGMA**2)).sum())
    return total / (len(one_ND) * len(other_MD))
