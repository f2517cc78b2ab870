"""The autoencoder: SDXL's by name, folders, and a small one that is fitted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file

from curate.weights import MissingWeights
from tests.train.synthetic_root import picture
from train import autoencoder

MOMENTS_OF_ENCODING_1 = [-0.10883, 0.10614, -0.16748, -0.23401, -0.41724, -0.40161, 0.33789, 0.28003]
"""Of the first latent pixel, by channel; the numbers that pixels() and encode_moments() gave when ENCODING was 1."""
SMALL = autoencoder.FitConfig(steps=40, block_out_channels=(8, 8, 16))


def test_sdxl_s_autoencoder_has_its_published_size():
    with torch.device("meta"):
        vae = AutoencoderKL(**autoencoder.SDXL_VAE)
    assert sum(parameter.numel() for parameter in vae.parameters()) == 83_653_863


def test_a_registered_name_loads_its_file_exactly(tmp_path, monkeypatch):
    tiny = {**autoencoder.SDXL_VAE, "block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
    monkeypatch.setattr(autoencoder, "SDXL_VAE", tiny)
    torch.manual_seed(0)
    saved = AutoencoderKL(**tiny)
    save_file(saved.state_dict(), tmp_path / "vae.safetensors")
    monkeypatch.setattr(autoencoder, "path_of", lambda name: tmp_path / "vae.safetensors")
    loaded = autoencoder.load_vae("sdxl_vae")
    assert autoencoder.fingerprint(loaded) == autoencoder.fingerprint(saved)
    assert not loaded.training


def test_what_encoding_makes_of_a_picture_has_not_changed_without_its_number():
    torch.manual_seed(0)
    tiny = {**autoencoder.SDXL_VAE, "block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
    vae = AutoencoderKL(**tiny).eval()
    ramp_HWC = np.arange(32 * 32 * 3, dtype=np.uint32).reshape(32, 32, 3) % 251
    image = Image.fromarray(ramp_HWC.astype(np.uint8))
    moments_CHW = autoencoder.encode_moments(vae, autoencoder.pixels(image)[None])[0]
    assert autoencoder.ENCODING.endswith("; 1"), "raised: give the values of the new encoding here"
    assert moments_CHW.dtype == np.float16
    assert np.allclose(moments_CHW[:, 0, 0].astype(float), MOMENTS_OF_ENCODING_1, atol=2e-3)


def test_missing_weights_and_folders_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("DARKROOM_WEIGHTS", str(tmp_path))
    with pytest.raises(MissingWeights, match="fetch sdxl_vae"):
        autoencoder.load_vae("sdxl_vae")
    with pytest.raises(FileNotFoundError, match="no config.json there"):
        autoencoder.load_vae(str(tmp_path))


def test_a_fitted_one_reconstructs_and_its_latents_have_unit_deviation(tmp_path):
    batch_BCHW = torch.stack([autoencoder.pixels(picture(number, (32, 32))) for number in range(8)])
    steps: list[int] = []
    vae = autoencoder.fit([batch_BCHW], SMALL, steps.append)
    assert steps == list(range(1, SMALL.steps + 1))
    untrained = autoencoder.fit([batch_BCHW], autoencoder.FitConfig(steps=1, block_out_channels=(8, 8, 16)))
    fitted_db = autoencoder.reconstruction_psnr_db(vae, [batch_BCHW])
    assert fitted_db > autoencoder.reconstruction_psnr_db(untrained, [batch_BCHW]) + 2
    moments_BCHW = autoencoder.encode_moments(vae, batch_BCHW)
    assert moments_BCHW.dtype == np.float16
    scaled = moments_BCHW[:, :4].astype(np.float32) * vae.config.scaling_factor
    assert np.sqrt((scaled**2).mean()) == pytest.approx(1.0, abs=0.02)
    autoencoder.save_vae(vae, tmp_path / "vae")
    assert autoencoder.fingerprint(autoencoder.load_vae(str(tmp_path / "vae"))) == autoencoder.fingerprint(vae)
