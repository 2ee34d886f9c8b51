"""Inception's statistics in ADM's files."""

import numpy as np

from aimamba.evaluation.npz import stored_statistics
from aimamba.evaluation.sources import open_source


def test_statistics(tmp_path, pixels):
    stored = {"mu": np.arange(3.0), "sigma": np.eye(3), "mu_s": np.ones(2, np.float32), "sigma_s": np.eye(2)}
    np.savez(tmp_path / "both.npz", arr_0=pixels(3), **stored)
    np.savez(tmp_path / "alone.npz", mu=stored["mu"], sigma=stored["sigma"])
    both, alone = (open_source(str(tmp_path / f"{name}.npz")) for name in ("both", "alone"))
    assert (len(both), len(alone), alone.size) == (3, 0, 0)
    assert stored_statistics(both).pooled.mean.tolist() == [0, 1, 2]
    assert stored_statistics(both).spatial.covariance.tolist() == [[1, 0], [0, 1]]
    assert stored_statistics(alone).spatial is None


def test_other_images_have_no_statistics(tmp_path, folder, pixels):
    np.savez(tmp_path / "s.npz", arr_0=pixels(3))
    assert stored_statistics(open_source(str(tmp_path / "s.npz"))) is None
    assert stored_statistics(open_source(str(folder))) is None
