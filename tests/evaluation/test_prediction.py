"""The surface through measured points: distances and formula by hand, least squares and left-out errors by brute force.

Layers are named by their Gram matrices: one layer with one task vector of length 1 is the line of the examples.
"""

import math
import subprocess
import sys

import numpy as np
import pytest

from warp_core.evaluation import prediction
from warp_core.evaluation.prediction import FittedSurface, fit_surface, mean_square, predict, squared_distances

LINE = np.ones((1, 1, 1))


def on_a_line(values, errors, where, *, zero_at_sft=False):
    """Fit points on a line whose origin is the SFT policy; returns the surface and a function that evaluates it."""
    where = np.asarray(where, dtype=float)
    points = where[:, None, None]
    d2 = squared_distances(points, points, LINE, scale=1.0)
    surface = fit_surface(
        np.asarray(values, dtype=float), np.asarray(errors, dtype=float), d2, np.abs(where), zero_at_sft=zero_at_sft
    )

    def at(*others):
        others = np.asarray(others, dtype=float)
        return predict(surface, squared_distances(others[:, None, None], points, LINE, scale=1.0), np.abs(others))

    return surface, at


class TestDistances:
    def test_two_single_policies(self):
        """Two orthogonal task vectors of length 2: the policies are sqrt(8) apart, each 2 from the init."""
        gram = np.diag([4.0, 4.0])[None]
        scale = mean_square(gram, num_policies=2)
        assert scale == 4.0
        alone, init = np.eye(2)[:, None, :], np.zeros((1, 1, 2))
        assert squared_distances(alone, alone, gram, scale=scale).tolist() == [[0.0, 2.0], [2.0, 0.0]]
        assert squared_distances(alone, init, gram, scale=scale).tolist() == [[1.0], [1.0]]

    def test_layers_add_up_and_the_sft_column_is_no_policy(self):
        """Layer 1: delta (1, 0), sft (0, 3). Layer 2: delta (2, 0), sft (-2, 0), so they cancel at (1, 1)."""
        gram = np.array([[[1.0, 0.0], [0.0, 9.0]], [[4.0, -4.0], [-4.0, 4.0]]])
        assert mean_square(gram, num_policies=1) == 5.0
        one, other = np.ones((1, 2, 2)), np.zeros((1, 2, 2))
        assert squared_distances(one, other, gram, scale=5.0)[0, 0] == pytest.approx((1 + 9 + 0) / 5)

    def test_are_those_of_the_weights(self):
        rng = np.random.default_rng(0)
        deltas_LKD = rng.normal(size=(3, 2, 7))
        gram = np.einsum("lkd,ljd->lkj", deltas_LKD, deltas_LKD)
        a, b = rng.normal(size=(4, 3, 2)), rng.normal(size=(5, 3, 2))
        models = [np.einsum("plk,lkd->pld", c, deltas_LKD).reshape(len(c), -1) for c in (a, b)]
        want = ((models[0][:, None] - models[1][None]) ** 2).sum(axis=2)
        assert squared_distances(a, b, gram, scale=2.0) == pytest.approx(want / 2.0)

    def test_are_never_negative(self):
        gram = np.array([[[1.0, 1.0 + 1e-15], [1.0 + 1e-15, 1.0]]])
        assert squared_distances(np.array([[[1.0, -1.0]]]), np.zeros((1, 1, 2)), gram, scale=1.0)[0, 0] == 0.0


def test_the_formula_by_hand():
    """At u = 2, 1 and 3 away from two points: 1 + 2*2 + 0.5*4 + 3 exp(-1/8) - 2 exp(-9/8) with lengthscale 2."""
    surface = FittedSurface(beta=(1.0, 2.0, 0.5), alpha_P=np.array([3.0, -2.0]), lengthscale=2.0, loo_rmse=None)
    found = predict(surface, np.array([[1.0, 9.0]]), np.array([2.0]))
    assert found[0] == pytest.approx(7.0 + 3 * 0.8824969 - 2 * 0.3246525, abs=1e-6)


class TestFit:
    @pytest.mark.parametrize("curve", [lambda u: 0.3 + 2 * u, lambda u: 1 - u + 3 * u**2, lambda u: 0 * u + 4])
    def test_a_curve_of_the_trend_is_found_exactly(self, curve):
        where = np.linspace(0, 1, 9)
        surface, at = on_a_line(curve(where), np.full(9, 0.01), where)
        between = np.array([0.05, 0.33, 0.9, 1.4])
        assert at(*between) == pytest.approx(curve(between), abs=1e-6)
        assert surface.loo_rmse < 1e-6
        assert np.abs(surface.alpha_P).max() < 1e-6

    def test_a_bend_that_the_trend_lacks_is_followed_where_errors_are_small(self):
        where = np.linspace(0, 1, 12)
        values = np.sin(6 * where)
        _, at = on_a_line(values, np.full(12, 1e-3), where)
        assert at(*where) == pytest.approx(values, abs=3e-3)
        assert at(0.5 / 11, 5.5 / 11) == pytest.approx([math.sin(3 / 11), math.sin(3)], abs=0.05)

    def test_noise_is_not_followed(self):
        rng = np.random.default_rng(1)
        where = np.linspace(0, 1, 40)
        noise = rng.normal(scale=0.3, size=40)
        _, at = on_a_line(2 * where + noise, np.full(40, 0.3), where)
        assert np.abs(at(*where) - 2 * where).max() < 0.2
        assert np.abs(noise).max() > 0.5

    def test_a_known_point_is_met_and_others_within_their_errors(self):
        where = np.array([0, 0.1, 0.3, 0.5, 0.8, 1.0, 1.2, 0.65])
        errors = np.array([0, 0.02, 0.1, 0.3, 0.5, 0.6, 0.7, 0.4])
        kl = 20 * where**1.6
        _, at = on_a_line(kl, errors, where, zero_at_sft=True)
        assert abs(at(0.0)[0]) < 0.01
        assert (np.abs(at(*where) - kl) <= np.maximum(errors, 0.03)).all()
        assert (at(*np.linspace(0, 1.2, 60)) > -0.01).all()

    def test_without_a_constant_nothing_is_there_at_the_sft_policy(self):
        surface, _ = on_a_line([1.0, 2.1, 2.9, 4.2, 5.0, 6.1, 6.8, 8.3], [0.1] * 8, np.arange(1, 9), zero_at_sft=True)
        assert surface.beta[0] == 0.0

    def test_few_points_have_a_straight_trend(self):
        surface, at = on_a_line([0.0, 1.0, 2.0, 3.0], [0.1] * 4, [0.0, 0.5, 1.0, 1.5])
        assert surface.beta[2] == 0.0
        assert at(0.75) == pytest.approx([1.5], abs=1e-3)

    def test_an_unknown_error_counts_as_the_usual_one(self):
        where, values = np.linspace(0, 1, 9), np.sin(6 * np.linspace(0, 1, 9))
        errors = np.full(9, 0.2)
        known, _ = on_a_line(values, errors, where)
        errors[4] = np.nan
        unknown, _ = on_a_line(values, errors, where)
        assert unknown.alpha_P == pytest.approx(known.alpha_P)
        none, at = on_a_line(values, np.full(9, np.nan), where)
        assert at(*where) == pytest.approx(values, abs=0.05)
        assert none.loo_rmse > 0

    def test_points_all_as_far_away_still_make_a_surface(self):
        """Single policies only: the trend cannot be told apart from a constant."""
        points = np.eye(5)[:, None, :]
        gram = np.eye(5)[None]
        d2 = squared_distances(points, points, gram, scale=1.0)
        surface = fit_surface(np.array([1.0, 2.0, 1.5, 1.2, 1.8]), np.full(5, 0.1), d2, np.ones(5))
        assert predict(surface, d2, np.ones(5)) == pytest.approx([1.0, 2.0, 1.5, 1.2, 1.8], abs=0.1)

    def test_values_that_are_all_the_same(self):
        surface, at = on_a_line([0.5] * 5, [0.0] * 5, np.linspace(0, 1, 5))
        assert at(0.3, 2.0) == pytest.approx([0.5, 0.5], abs=1e-6)
        assert surface.loo_rmse is None

    @pytest.mark.parametrize("values", [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0, math.nan]])
    def test_too_few_or_broken_values(self, values):
        with pytest.raises(ValueError, match="four points"):
            on_a_line(values, [0.1] * len(values), np.arange(len(values)))

    def test_many_points_take_no_longer_to_choose_for(self, monkeypatch):
        seen = []
        likeliest = prediction._likeliest
        monkeypatch.setattr(prediction, "_likeliest", lambda *args: seen.append(len(args[0])) or likeliest(*args))
        where = np.linspace(0, 1, 300)
        _, at = on_a_line(np.sqrt(where), np.full(300, 0.01), where)
        assert seen == [prediction.FITTED_ON]
        assert at(0.5) == pytest.approx([0.5**0.5], abs=0.02)


class TestAgainstBruteForce:
    """One point of the grid, everything by dense inverses and refits."""

    LENGTH, SIGNAL, OWN = 0.4, 0.7, 0.3

    @pytest.fixture(autouse=True)
    def _one_choice(self, monkeypatch):
        monkeypatch.setattr(prediction, "LENGTHSCALES", np.array([self.LENGTH]))
        monkeypatch.setattr(prediction, "SIGNALS", np.array([self.SIGNAL]))
        monkeypatch.setattr(prediction, "OWN_NOISE", (self.OWN,))

    where = np.array([0.0, 0.1, 0.25, 0.45, 0.6, 0.7, 0.9, 1.1, 1.3])
    values = np.array([0.1, 0.3, 0.2, 0.9, 1.4, 1.2, 2.2, 2.0, 2.3])
    errors = np.array([0.05, 0.1, 0.1, 0.2, 0.1, 0.15, 0.2, 0.1, 0.3])

    def brute(self, keep, at):
        """V = s^2 K + D, beta = (H' V^-1 H)^-1 H' V^-1 y, f = h' beta + k' V^-1 (y - H beta)."""
        span = np.ptp(self.values)
        x, y, e = (array[keep] for array in (self.where, self.values, self.errors))

        def kernel(a, b):
            return (self.SIGNAL * span) ** 2 * np.exp(-((a[:, None] - b[None]) ** 2) / (2 * self.LENGTH**2))

        inverse = np.linalg.inv(kernel(x, x) + np.diag(self.OWN * e**2 + (prediction.FLOOR * span) ** 2))
        trend = np.vander(x, 3, increasing=True)
        beta = np.linalg.inv(trend.T @ inverse @ trend) @ trend.T @ inverse @ y
        return np.vander(at, 3, increasing=True) @ beta + kernel(at, x) @ inverse @ (y - trend @ beta), beta

    def test_the_prediction(self):
        surface, at = on_a_line(self.values, self.errors, self.where)
        others = np.array([0.05, 0.5, 1.0, 1.7])
        want, beta = self.brute(np.arange(9), others)
        assert surface.beta == pytest.approx(tuple(beta), rel=1e-6)
        assert at(*others) == pytest.approx(want, rel=1e-6)

    def test_left_out_errors_without_refitting(self):
        surface, _ = on_a_line(self.values, self.errors, self.where)
        missed = []
        for p in range(9):
            others = np.delete(np.arange(9), p)
            missed.append(self.values[p] - self.brute(others, self.where[p : p + 1])[0][0])
        assert surface.loo_rmse == pytest.approx(np.sqrt(np.mean(np.square(missed))), rel=1e-6)

    def test_a_point_that_is_exact_is_not_counted_in_the_error(self):
        errors = self.errors.copy()
        errors[0] = 0.0
        surface, _ = on_a_line(self.values, errors, self.where)
        counted, _ = on_a_line(self.values, np.where(errors == 0, 1e-12, errors), self.where)
        assert surface.alpha_P == pytest.approx(counted.alpha_P, rel=1e-6)
        assert surface.loo_rmse != pytest.approx(counted.loo_rmse)


def test_the_likeliest_grid_point_is_that_of_the_density_of_contrasts():
    """Restricted likelihood is the Gaussian density of contrasts that no trend moves: compared on random data."""
    rng = np.random.default_rng(3)
    x = np.sort(rng.uniform(0, 1, 10))
    d2 = (x[:, None] - x[None]) ** 2
    trend = np.vander(x, 3, increasing=True)
    contrasts = np.linalg.svd(trend)[0][:, 3:]  # an orthonormal basis of what is orthogonal to the trend
    for seed in range(5):
        y = np.random.default_rng(seed).normal(size=10)
        errors = np.full(10, 0.2)
        found = prediction._likeliest(y, errors, d2, trend, 1.0)

        def density(lengthscale, signal, own, y=y, errors=errors):
            v = contrasts.T @ prediction._covariance(errors, d2, 1.0, lengthscale, signal, own) @ contrasts
            z = contrasts.T @ y
            return -0.5 * (np.linalg.slogdet(v)[1] + z @ np.linalg.solve(v, z))

        grid = [
            (length, signal, own)
            for length in prediction.LENGTHSCALES
            for signal in prediction.SIGNALS
            for own in prediction.OWN_NOISE
        ]
        assert density(*found) == pytest.approx(max(density(*one) for one in grid), abs=1e-9)


def test_nothing_heavy_is_imported():
    code = (
        "import sys, warp_core.evaluation.prediction as p;"
        "print(sorted({'torch', 'transformers', 'pydantic', 'scipy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
