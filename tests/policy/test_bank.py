"""One base, many merges, row by row: each row is the model that a merge in memory would be."""

import gc
import threading

import psutil
import pytest
import torch

from tests import tiny
from tests.weights.helpers import adapter_set
from warp_core.errors import MismatchError
from warp_core.policy import bank as bank_module
from warp_core.policy.bank import AdapterBank
from warp_core.policy.model import load_policy
from warp_core.weights import ResidentMerge, coefficients, compute_geometry, make_recipe, open_checkpoint

CPU = torch.device("cpu")
IDS = torch.randint(0, 256, (1, 9), generator=torch.Generator().manual_seed(0))
RECIPES = [
    {"method": "slerp", "eta": 0.3},
    {"method": "slerp", "eta": 2.0},
    {"method": "lerp", "eta": 1.0},
    {"method": "lerp", "eta": 0.5, "granularity": "tensor"},
    {"method": "slerp", "eta": 1.0, "granularity": "model"},
]
SCALING = [
    {"method": "slerp-weights", "eta": 1.3},
    {"method": "slerp-weights", "eta": 0.7, "granularity": "tensor"},
    {"method": "slerp-weights", "eta": 0.7, "granularity": "model"},
]


class Scene:
    """Adapters over a base in a bank, and the same in a model whose weights move."""

    def __init__(self, init, policies, *, dtype=torch.float32):
        self.init, self.policies = init, policies
        self.base = open_checkpoint(init.full.path)
        self.towards = self.base if init.id != self.base.id else None
        self.sources = [init, *policies, *([self.towards] if self.towards else [])]
        self.bank = AdapterBank(load_policy(self.base.path, device=CPU, dtype=dtype), self.base)
        self.bank.load(self.sources)
        self.dense = load_policy(self.base.path, device=CPU, dtype=dtype).model
        self.resident = ResidentMerge(self.dense, init=init, policies=policies, towards=self.towards)

    def coefficients(self, *, granularity="layer", to_init=False, **recipe):
        weights = [w / (len(self.policies) * (len(self.policies) + 1) / 2) for w in range(1, len(self.policies) + 1)]
        geometry = compute_geometry(self.init, self.policies, granularity=granularity)
        towards = None if to_init else self.towards
        made = make_recipe(
            self.init, self.policies, weights=weights, granularity=granularity, towards=towards, **recipe
        )
        return coefficients(made, geometry)

    def mix(self, **recipe):
        return self.bank.mix(self.coefficients(**recipe), self.sources)

    @torch.no_grad()
    def rows(self, mixes, *, copies=1, ids=IDS):
        """Logits of the bank [len(mixes) * copies, T, V]."""
        with self.bank.at(self.bank.table(mixes)):
            return self.bank.policy.model(input_ids=ids.repeat(len(mixes) * copies, 1)).logits

    @torch.no_grad()
    def merged(self, *, ids=IDS, **recipe):
        """Logits of the moved model [T, V]."""
        self.resident.move(self.coefficients(**recipe))
        return self.dense(input_ids=ids).logits[0]

    @torch.no_grad()
    def plain(self):
        return load_policy(self.base.path, device=CPU).model(input_ids=IDS).logits[0]


def assert_each_row_is_its_merge(scene, recipes, *, copies=2):
    found = scene.rows([*(scene.mix(**recipe) for recipe in recipes), None], copies=copies)
    wanted = [*(scene.merged(**recipe) for recipe in recipes), scene.plain()]
    for number, want in enumerate(wanted):
        for row in found[number * copies : (number + 1) * copies]:
            assert float((row - want).abs().max()) < 1e-4
            assert torch.equal(row.argmax(-1), want.argmax(-1))
    # The rows are different models: the test would see a row that is another's.
    distances = torch.cdist(*[torch.stack(wanted).flatten(1)] * 2) + torch.eye(len(wanted))
    assert float(distances.min()) > 0.01


KINDS = [("llama", {}), ("llama", {"shared_a": True}), ("gpt2", {"shared_a": True})]


@pytest.mark.parametrize(("family", "kind"), [*KINDS, *((family, {"with_init": True}) for family in tiny.FAMILIES)])
def test_every_row_is_the_merge_of_its_recipe(family, kind, tmp_path):
    scene = Scene(*adapter_set(tmp_path, family, num=3, **kind))
    scales = family != "mixtral"
    recipes = RECIPES + SCALING if scales else RECIPES
    if kind.get("with_init"):
        recipes = [*recipes, {"method": "slerp", "eta": 0.4, "to_init": True}]
    assert_each_row_is_its_merge(scene, recipes)


def test_adapters_of_several_ranks_and_modules(tmp_path):
    base = tiny.make_model("llama", tmp_path / "base")
    settings = [
        {"rank": 1},
        {"rank": 6, "alpha": 3, "target_modules": ["q_proj", "down_proj"]},
        {"rank": 4, "target_modules": ["v_proj"], "seed_a": 5, "rank_pattern": {"layers.1.self_attn.v_proj": 2}},
    ]
    adapters = [
        open_checkpoint(tiny.make_adapter(base, tmp_path / f"a{m}", seed=m, **one), base=base)
        for m, one in enumerate(settings)
    ]
    assert_each_row_is_its_merge(Scene(open_checkpoint(base), adapters), [{"method": "lerp", "eta": 1.5}, *RECIPES])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_base_in_bfloat16_on_disk_computed_in_float32(family, tmp_path):
    scene = Scene(*adapter_set(tmp_path, family, num=2, with_init=True, dtype=torch.bfloat16))
    assert_each_row_is_its_merge(scene, RECIPES + SCALING)


def test_computed_in_bfloat16_it_is_the_merge_up_to_rounding(tmp_path):
    scene = Scene(*adapter_set(tmp_path, num=2), dtype=torch.bfloat16)
    recipe = {"method": "slerp", "eta": 0.5}
    row, want = scene.rows([scene.mix(**recipe)])[0], scene.merged(**recipe)
    assert row.dtype == torch.bfloat16
    exact = Scene(scene.init, scene.policies).merged(**recipe)
    error, usual = (float((one.float() - exact).abs().max()) for one in (row, want))
    assert error < 3 * usual


def test_shared_rows_of_a_are_held_once(tmp_path):
    scene = Scene(*adapter_set(tmp_path, num=3, shared_a=True, rank=4))
    updates = [one for one in scene.bank.table([scene.mix(), None]).updates_J if one is not None]
    assert {one.a_IR.shape[1] for one in updates} == {4}
    assert {one.bt_PRO.shape[:2] for one in updates} == {(2, 4)}


def test_the_base_costs_nothing_extra(tmp_path):
    scene = Scene(*adapter_set(tmp_path, num=2))
    assert scene.bank.table([None, None]) is None
    assert scene.bank.table([scene.mix(eta=0.0)]) is None
    # Two rows of a batch may be added up in another order.
    torch.testing.assert_close(scene.rows([scene.mix(eta=0.0), None])[0], scene.rows([None, None])[1])


def test_what_a_thread_computes_is_its_own(tmp_path):
    scene = Scene(*adapter_set(tmp_path, num=2))
    etas = [0.0, 0.5, 1.0, 2.0]
    wanted = [scene.rows([scene.mix(eta=eta)]) for eta in etas]
    wrong: list[float] = []
    turns = threading.Barrier(len(etas), timeout=30)

    def work(number: int) -> None:
        table = scene.bank.table([scene.mix(eta=etas[number])])
        for _ in range(5):
            with scene.bank.at(table), torch.no_grad():
                turns.wait()
                found = scene.bank.policy.model(input_ids=IDS).logits
                turns.wait()
            if not torch.allclose(found, wanted[number], atol=1e-5):
                wrong.append(etas[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(etas))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert torch.equal(scene.rows([None])[0], scene.rows([None])[0])


def test_adapters_join_later_and_tables_made_before_stay_right(tmp_path):
    init, policies = adapter_set(tmp_path, num=3)
    first, second = Scene(init, policies[:1]), Scene(init, policies)
    bank = first.bank
    early = bank.table([bank.mix(first.coefficients(eta=0.8), first.sources)])
    bank.load(policies)
    assert [one.id for one in bank.adapters] == [one.id for one in policies]
    both = bank.table(
        [bank.mix(first.coefficients(eta=0.8), first.sources), bank.mix(second.coefficients(eta=1.4), second.sources)]
    )
    with torch.no_grad():
        with bank.at(early):
            old = bank.policy.model(input_ids=IDS).logits[0]
        with bank.at(both):
            new = bank.policy.model(input_ids=IDS.repeat(2, 1)).logits
    torch.testing.assert_close(old, first.merged(eta=0.8), atol=1e-4, rtol=0)
    torch.testing.assert_close(new[0], old, atol=1e-5, rtol=0)
    torch.testing.assert_close(new[1], second.merged(eta=1.4), atol=1e-4, rtol=0)


def test_only_so_many_adapters_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(bank_module, "MAX_ADAPTERS", 2)
    scene = Scene(*adapter_set(tmp_path, num=2))
    before = scene.mix(eta=1.0)
    other = open_checkpoint(tiny.make_adapter(scene.base.path, tmp_path / "other", seed=9), base=scene.base.path)
    scene.bank.load([other])
    assert scene.bank.adapters == (other,)
    with pytest.raises(MismatchError, match="not loaded any more"):
        scene.bank.table([before])
    scene.bank.load(scene.policies)
    assert float((scene.rows([before])[0] - scene.merged(eta=1.0)).abs().max()) < 1e-4


def test_adapters_that_do_not_belong_here(tmp_path):
    scene = Scene(*adapter_set(tmp_path, num=1))
    elsewhere = tiny.make_model("llama", tmp_path / "elsewhere", seed=7)
    stranger = open_checkpoint(tiny.make_adapter(elsewhere, tmp_path / "stranger"), base=elsewhere)
    with pytest.raises(MismatchError, match="its base is not"):
        scene.bank.load([stranger])
    without = load_policy(scene.base.path, device=CPU)
    without.model.set_submodule("model.layers.0.mlp.up_proj", torch.nn.Identity())
    with pytest.raises(MismatchError, match=r"'model.layers.0.mlp.up_proj' of an adapter is no linear layer"):
        AdapterBank(without, scene.base).load(scene.policies)


def test_tokens_that_a_router_has_chosen_are_refused(tmp_path):
    scene = Scene(*adapter_set(tmp_path, num=2))
    layer = scene.bank.policy.model.get_submodule("model.layers.0.mlp.up_proj")
    with scene.bank.at(scene.bank.table([scene.mix(), None])), torch.no_grad():
        scene.bank.policy.model(input_ids=IDS.repeat(2, 1))
        assert layer(torch.zeros(18, 32)).shape == (18, 48)
        with pytest.raises(MismatchError, match="experts"):
            layer(torch.zeros(6, 32))


def test_what_cannot_be_scaled_is_said(tmp_path):
    scene = Scene(*adapter_set(tmp_path, "mixtral", num=2))
    mix = scene.mix(method="slerp-weights")
    assert not scene.bank.supports(mix)
    assert scene.bank.supports(scene.mix(method="slerp"))
    with pytest.raises(MismatchError, match="use slerp or lerp"):
        scene.bank.table([mix])


def test_layers_show_the_weight_of_the_base(tmp_path):
    for family, name in (("llama", "model.layers.1.mlp.down_proj"), ("gpt2", "transformer.h.0.attn.c_attn")):
        scene = Scene(*adapter_set(tmp_path / family, family, num=1))
        want = load_policy(scene.base.path, device=CPU).model.get_submodule(name).weight
        assert torch.equal(scene.bank.policy.model.get_submodule(name).weight, want)


def test_memory_stays_flat_over_hundreds_of_moves(tmp_path):
    scene = Scene(*adapter_set(tmp_path, num=3, with_init=True))
    coefs = [scene.coefficients(eta=eta / 50) for eta in range(100)]

    def moves(count: int) -> None:
        for number in range(count):
            mixes = [scene.bank.mix(coefs[(number + shift) % 100], scene.sources) for shift in (0, 31)]
            scene.rows([*mixes, None])

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())

    moves(50)
    before, resident = tensors(), psutil.Process().memory_info().rss
    moves(300)
    assert tensors() <= before
    assert psutil.Process().memory_info().rss - resident < 8e6
