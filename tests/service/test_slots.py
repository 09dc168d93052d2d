"""Live models of full checkpoints: each is its merge, stays where it can, and gives way where memory is short."""

import gc
import weakref

import pytest
import torch

from tests import tiny
from tests.weights.helpers import adapter_set, full_set
from warp_core.policy.model import load_policy
from warp_core.service import slots as slots_module
from warp_core.service.seats import SFT_KEY, Blend
from warp_core.service.slots import SharedSources, Slots, free_bytes
from warp_core.training.warp import Sources
from warp_core.weights import ResidentMerge, coefficients, compute_geometry, make_recipe, open_checkpoint

CPU = torch.device("cpu")
IDS = torch.arange(10)[None]


def logits(policy):
    with torch.no_grad():
        return policy.model(input_ids=IDS).logits


class Scene:
    """Iterations with an init and policies each, over one SFT policy."""

    def __init__(self, tmp_path, *, iterations=1):
        self.sft, policies = full_set(tmp_path, num=2 + 3 * (iterations - 1), scale=0.05)
        self.iterations = [Sources(sft=self.sft, init=self.sft, policies=policies[:2])]
        for number in range(1, iterations):
            init, *own = policies[3 * number - 1 : 3 * number + 2]
            self.iterations.append(Sources(sft=self.sft, init=init, policies=own))
        self.slots = Slots(self.sft, device=CPU, dtype=torch.float32)

    def blend(self, eta, iteration=1, **settings):
        sources = self.iterations[iteration - 1]
        recipe = make_recipe(sources.init, sources.policies, eta=eta, towards=sources.towards, **settings)
        merge = coefficients(recipe, compute_geometry(sources.init, sources.policies))
        return Blend(key=recipe.id, sources=sources, coefficients=merge)

    def base(self, iteration=1):
        return Blend(key=SFT_KEY, sources=self.iterations[iteration - 1])

    def want(self, blend):
        policy = load_policy(self.sft.path, device=CPU)
        if blend.coefficients is not None:
            sources = blend.sources
            resident = ResidentMerge(
                policy.model, init=sources.init, policies=sources.policies, towards=sources.towards
            )
            resident.move(blend.coefficients)
        return logits(policy)

    def assert_right(self, blends, *, together):
        seats, found = self.slots.seats(blends)
        assert found is together
        assert [seat.panes for seat in seats] == [(number,) for number in range(len(blends))]
        if together:
            for seat in seats:
                seat.begin()
            for seat, blend in zip(seats, blends, strict=True):
                assert torch.equal(logits(seat.policy), self.want(blend))
        else:
            for seat, blend in zip(seats, blends, strict=True):
                seat.begin()
                assert torch.equal(logits(seat.policy), self.want(blend))
        return seats


def moves_counted(monkeypatch):
    """One entry per merge written into a live model from now on."""
    moved = []
    original = ResidentMerge.move

    def move(self, merge):
        moved.append(merge)
        original(self, merge)

    monkeypatch.setattr(ResidentMerge, "move", move)
    return moved


def test_three_models_at_once_and_what_is_there_stays(tmp_path, monkeypatch):
    scene = Scene(tmp_path)
    moved = moves_counted(monkeypatch)
    blends = [scene.base(), scene.blend(0.3), scene.blend(1.0)]
    scene.assert_right(blends, together=True)
    assert scene.slots.num_live == 2
    moved.clear()
    seats, _ = scene.slots.seats(blends)
    for seat in seats:
        seat.begin()
    assert moved == [], "nothing moves where nothing changed"
    changed = [blends[0], scene.blend(0.7), blends[2]]
    for seat in scene.slots.seats(changed)[0]:
        seat.begin()
    assert len(moved) == 1
    scene.assert_right(changed, together=True)
    assert scene.slots.num_live == 2


def test_equal_panes_are_one_model(tmp_path):
    scene = Scene(tmp_path)
    seats = scene.assert_right([scene.blend(0.5), scene.base(), scene.blend(0.5)], together=True)
    assert seats[0].policy is seats[2].policy
    assert scene.slots.num_live == 1


def test_the_sft_policy_is_the_reference_and_no_copy(tmp_path):
    scene = Scene(tmp_path, iterations=2)
    sft = scene.want(scene.base())
    for blends in ([scene.base(), scene.blend(0.5)], [scene.blend(1.0)], [scene.blend(0.5, 2), scene.base(2)]):
        seats = scene.assert_right(blends, together=True)
        for seat in seats:
            assert seat.reference is scene.slots.policy
            assert torch.equal(logits(seat.reference), sft)
        held = scene.slots._live[0].merge.parameters_of(scene.sft)
        own = dict(scene.slots.policy.model.named_parameters())
        assert {name: tensor.data_ptr() for name, tensor in held.items()} == {
            name: tensor.data_ptr() for name, tensor in own.items()
        }
        live = dict(scene.slots._live[0].policy.model.named_parameters())
        assert not {tensor.data_ptr() for tensor in live.values()} & {tensor.data_ptr() for tensor in held.values()}


def test_in_another_dtype_than_on_disk_the_sft_policy_has_its_own_weights(tmp_path):
    scene = Scene(tmp_path)
    scene.slots = Slots(scene.sft, device=CPU, dtype=torch.bfloat16)
    want = logits(load_policy(scene.sft.path, device=CPU, dtype=torch.bfloat16))
    seats, _ = scene.slots.seats([scene.base(), scene.blend(0.5)])
    for seat in seats:
        seat.begin()
    assert torch.equal(logits(seats[0].policy), want)
    assert seats[0].policy.dtype == seats[1].policy.dtype == torch.bfloat16


def test_more_than_three_models_take_turns(tmp_path):
    scene = Scene(tmp_path)
    scene.assert_right([scene.blend(eta) for eta in (0.0, 0.4, 0.8, 1.2)], together=False)
    assert scene.slots.num_live == 3


@pytest.mark.parametrize("room", [1, 2])
def test_where_memory_is_short_the_models_take_turns(tmp_path, monkeypatch, room):
    scene = Scene(tmp_path)
    size = 4 * scene.sft.num_params
    have = [slots_module._RESERVE_BYTES + 3 * size + (room - 1) * size + size // 2]

    def free(device):
        taken = (scene.slots.num_live - 1) * size
        return have[0] - taken

    monkeypatch.setattr(slots_module, "free_bytes", free)
    blends = [scene.base(), scene.blend(0.3), scene.blend(0.6), scene.blend(1.0)]
    scene.assert_right(blends, together=False)
    assert scene.slots.num_live == room
    # The models have read their sources now, so that these no longer count as memory to come.
    have[0] = 0
    scene.assert_right(blends, together=False)
    seats, _ = scene.slots.seats(blends)
    for seat, blend in zip(seats, blends, strict=True):
        seat.begin()
        assert torch.equal(logits(seat.reference), scene.want(scene.base()))
        assert torch.equal(logits(seat.policy), scene.want(blend))


def test_panes_of_several_iterations(tmp_path):
    scene = Scene(tmp_path, iterations=2)
    blends = [scene.base(2), scene.blend(0.5, 1), scene.blend(0.5, 2)]
    scene.assert_right(blends, together=True)
    assert len({str(scene.want(blend)) for blend in blends}) == 3
    scene.assert_right([scene.blend(1.0, 2), scene.blend(0.5, 1), scene.base(1)], together=True)
    scene.assert_right([scene.blend(eta, iteration) for eta in (0.2, 0.9) for iteration in (2, 1)], together=False)


def test_the_sources_of_another_iteration_are_let_go_of(tmp_path):
    scene = Scene(tmp_path, iterations=2)
    scene.assert_right([scene.base(), scene.blend(0.5, 1)], together=True)
    first = weakref.ref(scene.slots._live[0].merge._copies[0]["model.embed_tokens.weight"])
    scene.assert_right([scene.base(2), scene.blend(0.5, 2)], together=True)
    gc.collect()
    assert first() is None


def test_sources_are_held_once_and_only_while_they_are_used(tmp_path):
    scene = Scene(tmp_path, iterations=2)
    shared, (first, second) = SharedSources(), scene.iterations
    merges = [shared.merge_on(tiny.load_model(scene.sft.path), sources=first) for _ in range(3)]
    other = shared.merge_on(tiny.load_model(scene.sft.path), sources=second)
    assert len({id(merge._copies) for merge in merges}) == 1
    assert other._copies is not merges[0]._copies
    for number in (0, 2):
        merges[number] = None
        gc.collect()
        assert shared.holds(first)
    again = shared.merge_on(tiny.load_model(scene.sft.path), sources=first)
    assert again._copies is merges[1]._copies
    copies = weakref.ref(again._copies[1]["model.embed_tokens.weight"])
    del again
    merges.clear()
    gc.collect()
    assert copies() is None
    assert not shared.holds(first)
    assert shared.holds(second)


def test_adapters_can_be_slots_too(tmp_path):
    init, policies = adapter_set(tmp_path, "mixtral", with_init=True)
    sft = open_checkpoint(init.full.path)
    sources = Sources(sft=sft, init=init, policies=policies)
    scene = Scene.__new__(Scene)
    scene.sft, scene.iterations = sft, [sources]
    scene.slots = Slots(sft, device=CPU, dtype=torch.float32)
    blends = [scene.base(), scene.blend(0.5, method="slerp-weights"), scene.blend(1.5)]
    scene.assert_right(blends, together=True)


def test_memory_of_this_machine():
    assert free_bytes(CPU) > 1e6
