"""Hand-worked numbers and properties of the method on coefficients."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.weights import oracle
from warp_core.errors import GeometryError, RecipeError
from warp_core.slerp import slerp_coefficients_of_layers
from warp_core.weights import Geometry, LayerInfo, Recipe, coefficients, slerp_coefficients, slerp_pair

ORTHONORMAL = np.eye(3)


def geometry_of(*vectors, init=None, granularity="layer"):
    """A Geometry with one layer "a" from explicit vectors (task vectors; init defaults to zero)."""
    x = np.stack([np.zeros_like(vectors[0]) if init is None else init, *vectors])
    return Geometry(
        init="i",
        policies=tuple(f"p{m}" for m in range(len(vectors))),
        granularity=granularity,
        layers=(LayerInfo(name="a", num_params=len(vectors[0])),),
        gram_LNN=(x @ x.T)[None],
    )


def recipe_of(count, **fields):
    fields = {"weights": (1 / count,) * count} | fields
    return Recipe(init="i", policies=tuple(f"p{m}" for m in range(count)), **fields)


def test_slerp_of_orthogonal_vectors_at_one_half():
    assert slerp_pair(0.0, 0.5) == pytest.approx((math.sqrt(0.5), math.sqrt(0.5)))


def test_slerp_at_sixty_degrees_and_one_quarter():
    # sin 45deg / sin 60deg = .7071068/.8660254, sin 15deg / sin 60deg = .2588190/.8660254
    assert slerp_pair(0.5, 0.25) == pytest.approx((0.8164966, 0.2988585), abs=1e-7)


def test_slerp_ends_are_the_vectors():
    assert slerp_pair(0.3, 0.0) == pytest.approx((1.0, 0.0), abs=1e-15)
    assert slerp_pair(0.3, 1.0) == pytest.approx((0.0, 1.0), abs=1e-15)


def test_parallel_vectors_take_the_lerp_limit():
    assert slerp_pair(1.0, 0.25) == (0.75, 0.25)
    assert slerp_pair(1.0 + 1e-12, 0.25) == (0.75, 0.25)
    assert slerp_pair(math.cos(1e-7), 0.5) == (0.5, 0.5)


def test_the_limit_is_continuous():
    assert slerp_pair(math.cos(1e-4), 0.3) == pytest.approx((0.7, 0.3), abs=1e-8)


@pytest.mark.parametrize("angle", [math.pi, math.pi - 0.9e-3])
def test_opposite_vectors_are_an_error(angle):
    with pytest.raises(GeometryError, match="opposite"):
        slerp_pair(math.cos(angle), 0.5)


def test_almost_opposite_is_still_defined():
    keep, join = slerp_pair(math.cos(math.pi - 1.2e-3), 0.5)
    assert keep == pytest.approx(join)
    assert keep == pytest.approx(1 / (2 * math.cos((math.pi - 1.2e-3) / 2)), rel=1e-9)


def test_equation_26_on_three_orthonormal_vectors():
    # the numbers of DESIGN.md: slerp at 1/2 gives sin 45deg twice; at 1/3: sin 60deg * .7071 = .6124, sin 30deg = .5
    assert slerp_coefficients(ORTHONORMAL, [1 / 3] * 3) == pytest.approx([0.6123724, 0.6123724, 0.5], abs=1e-7)


def test_a_constant_third_would_give_other_numbers():
    first = slerp_pair(0.0, 1 / 3)
    x = np.array([*first, 0.0])
    keep, join = slerp_pair(0.0, 1 / 3)
    assert [*(keep * x[:2]), join] == pytest.approx([0.75, 0.4330127, 0.5], abs=1e-7)
    assert slerp_coefficients(ORTHONORMAL, [1 / 3] * 3) != pytest.approx([0.75, 0.4330127, 0.5], abs=1e-3)


def test_general_weights_by_hand():
    # w = (.5, .25, .25): lam_2 = 1/3 -> (sin 60, sin 30) = (.8660, .5); lam_3 = 1/4 -> keep sin 67.5, join sin 22.5
    keep, join = math.sin(math.radians(67.5)), math.sin(math.radians(22.5))
    expected = [keep * math.sqrt(3) / 2, keep * 0.5, join]
    assert slerp_coefficients(ORTHONORMAL, [0.5, 0.25, 0.25]) == pytest.approx(expected)


def test_weight_zero_leaves_a_policy_out_even_if_opposite():
    gram = np.array([[1.0, -1.0], [-1.0, 1.0]])
    assert slerp_coefficients(gram, [1.0, 0.0]).tolist() == [1.0, 0.0]
    assert slerp_coefficients(gram, [0.0, 1.0]).tolist() == [0.0, 1.0]
    with pytest.raises(GeometryError, match="layer 'x', policy 2"):
        slerp_coefficients(gram, [0.5, 0.5], layer="x")


def test_all_layers_at_once_are_the_layers_one_by_one():
    vectors = np.random.default_rng(0).standard_normal((6, 4, 5))
    vectors[1, 2] = vectors[1, 0]  # parallel
    vectors[2, 1] = 0.0
    gram = vectors @ vectors.swapaxes(1, 2)
    weights = [0.1, 0.4, 0.0, 0.5]
    together = slerp_coefficients_of_layers(gram, weights, layers=list("abcdef"))
    assert together.tolist() == [slerp_coefficients(one, weights).tolist() for one in gram]
    gram[4, 1], gram[4, :, 1] = -gram[4, 0], -gram[4, :, 0]
    gram[4, 1, 1] = gram[4, 0, 0]
    with pytest.raises(GeometryError, match="layer 'e', policy 2"):
        slerp_coefficients_of_layers(gram, [0.5, 0.5, 0.0, 0.0], layers=list("abcdef"))


def test_a_zero_task_vector_takes_the_lerp_limit():
    assert slerp_coefficients(np.diag([0.0, 4.0]), [0.25, 0.75]).tolist() == [0.25, 0.75]
    assert slerp_coefficients(np.diag([4.0, 0.0]), [0.25, 0.75]).tolist() == [0.25, 0.75]
    assert slerp_coefficients(np.zeros((2, 2)), [0.25, 0.75]).tolist() == [0.25, 0.75]


def test_the_order_of_policies_counts():
    gram = np.array([[1.0, 0.8, 0.0], [0.8, 1.0, 0.0], [0.0, 0.0, 1.0]])
    swap = [2, 1, 0]
    forward = slerp_coefficients(gram, [1 / 3] * 3)
    backward = slerp_coefficients(gram[np.ix_(swap, swap)], [1 / 3] * 3)[swap]
    assert np.abs(forward - backward).max() > 0.05


def test_lerp_and_liti_by_hand():
    geometry = geometry_of(np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    coefs = coefficients(recipe_of(2, method="lerp", weights=(0.25, 0.75), eta=0.4), geometry)
    assert coefs.coef_LM[0] == pytest.approx([0.1, 0.3])
    assert coefs.init_L.tolist() == [1.0]
    assert coefs.towards_L.tolist() == [0.0]


def test_liti_towards_another_checkpoint():
    geometry = geometry_of(np.array([2.0, 0.0]), np.array([0.0, 5.0]))
    coefs = coefficients(recipe_of(2, eta=0.3, towards="sft"), geometry)
    assert coefs.coef_LM[0] == pytest.approx([0.3 * math.sqrt(0.5)] * 2)
    assert coefs.init_L[0] == pytest.approx(0.3)
    assert coefs.towards_L[0] == pytest.approx(0.7)


def test_eta_zero_and_one_are_exact():
    geometry = geometry_of(np.array([1.0, 2.0]), init=np.array([3.0, 1.0]))
    zero = coefficients(recipe_of(1, eta=0.0), geometry)
    one = coefficients(recipe_of(1, eta=1.0), geometry)
    assert zero.sources_LK.tolist() == [[1.0, 0.0, 0.0]]
    assert one.sources_LK.tolist() == [[0.0, 1.0, 0.0]]
    back = coefficients(recipe_of(1, eta=0.0, towards="sft"), geometry)
    assert back.sources_LK.tolist() == [[0.0, 0.0, 1.0]]


def test_full_weight_slerp_needs_no_second_pass():
    init, d1, d2 = np.array([3.0, 4.0, 0.0]), np.array([1.0, 0.0, 1.0]), np.array([0.0, 1.0, -1.0])
    coefs = coefficients(recipe_of(2, method="slerp-weights", eta=0.6), geometry_of(d1, d2, init=init))
    got = coefs.init_L[0] * init + coefs.coef_LM[0] @ np.stack([d1, d2])
    want = 0.4 * init + 0.6 * oracle.slerp(init + d1, init + d2, 0.5)
    assert got == pytest.approx(want, abs=1e-12)
    assert coefs.init_L[0] > 1  # the sum of SLERP factors exceeds one


def test_a_recipe_may_use_some_of_the_policies_of_a_geometry_in_any_order():
    a, b, c = np.array([1.0, 0.0, 0.0]), np.array([1.0, 1.0, 0.0]), np.array([0.0, 2.0, 2.0])
    recipe = Recipe(init="i", policies=("p2", "p0"), weights=(0.5, 0.5))
    got = coefficients(recipe, geometry_of(a, b, c)).coef_LM
    assert got == pytest.approx(coefficients(recipe_of(2), geometry_of(c, a)).coef_LM)


def test_recipe_and_geometry_must_belong_together():
    geometry = geometry_of(np.ones(2), np.ones(2))
    with pytest.raises(RecipeError, match="init other"):
        coefficients(Recipe(init="other", policies=("p0",), weights=(1.0,)), geometry)
    with pytest.raises(RecipeError, match="'nope'"):
        coefficients(Recipe(init="i", policies=("nope",), weights=(1.0,)), geometry)
    with pytest.raises(RecipeError, match="granularity"):
        coefficients(recipe_of(2, granularity="tensor"), geometry)


def test_opposite_task_vectors_name_the_layer():
    with pytest.raises(GeometryError, match="layer 'a'"):
        coefficients(recipe_of(2), geometry_of(np.array([1.0, 0.0]), np.array([-1.0, 0.0])))


vectors = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed))


@settings(max_examples=60, deadline=None)
@given(vectors, st.integers(2, 5), st.floats(0, 2))
def test_iterated_slerp_and_liti_on_coefficients_equal_the_same_on_weights(rng, count, eta):
    init, deltas = rng.normal(size=20), rng.normal(size=(count, 20))
    weights = rng.dirichlet(np.ones(count)).tolist()
    coefs = coefficients(recipe_of(count, weights=tuple(weights), eta=eta), geometry_of(*deltas, init=init))
    got = coefs.init_L[0] * init + coefs.coef_LM[0] @ deltas
    want = (1 - eta) * init + eta * (init + oracle.iterated_slerp(list(deltas), weights))
    assert got == pytest.approx(want, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(vectors, st.floats(0, 1), st.floats(0.01, math.pi - 0.01), st.floats(0.1, 10))
def test_lemma_1_slerp_keeps_the_norm(rng, lam, angle, norm):
    u, w = np.linalg.qr(rng.normal(size=(12, 2)))[0].T
    pair = norm * np.stack([u, math.cos(angle) * u + math.sin(angle) * w])
    gram = pair @ pair.T
    x = slerp_coefficients(gram, [1 - lam, lam])
    assert math.sqrt(x @ gram @ x) == pytest.approx(norm, rel=1e-9)


@settings(max_examples=100, deadline=None)
@given(vectors, st.floats(0.0, math.pi), st.floats(0.1, 10))
def test_lemma_2_lerp_shrinks_the_norm_by_the_cosine_of_half_the_angle(rng, angle, norm):
    u, w = np.linalg.qr(rng.normal(size=(12, 2)))[0].T
    pair = norm * np.stack([u, math.cos(angle) * u + math.sin(angle) * w])
    coefs = coefficients(recipe_of(2, method="lerp"), geometry_of(*pair))
    assert np.linalg.norm(coefs.coef_LM[0] @ pair) == pytest.approx(norm * math.cos(angle / 2), rel=1e-6, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(vectors, st.floats(0, 1))
def test_slerp_is_never_longer_than_the_longer_vector_at_acute_angles(rng, lam):
    pair = np.abs(rng.normal(size=(2, 8)))  # positive orthant: angle at most 90 degrees
    gram = pair @ pair.T
    x = slerp_coefficients(gram, [1 - lam, lam])
    assert (x >= 0).all()
    assert math.sqrt(x @ gram @ x) <= np.linalg.norm(pair, axis=1).max() * (1 + 1e-9)


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_lerp_of_orthonormal_vectors_shrinks_by_root_m_and_slerp_does_not(count):
    x = slerp_coefficients(np.eye(count), [1 / count] * count)
    assert np.linalg.norm(x) == pytest.approx(1.0)
    assert np.linalg.norm(np.full(count, 1 / count)) == pytest.approx(1 / math.sqrt(count))
