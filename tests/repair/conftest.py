from __future__ import annotations

import pytest

from diffinf.diffusion.autoencoder import DiffusionAutoencoder
from diffusion.tiny_autoencoder import make_autoencoder


@pytest.fixture(scope="session")
def autoencoder() -> DiffusionAutoencoder:
    return make_autoencoder()
