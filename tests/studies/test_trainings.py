"""Runs by their configuration: what is the same work has one folder, and later iterations take over the first."""

from dataclasses import replace

import pytest

from tests.tiny import make_model
from tests.training.runs import CPU, tiny_config
from warp_core.studies.plan import Rollout, Stage, changed, trajectory
from warp_core.studies.trainings import Trainings


@pytest.fixture
def trainings(fresh):
    return Trainings(fresh / "runs", device=CPU)


def config_of(folder, **training):
    fields = {"steps": [3, 2], "evaluate_every": 0, "keep_every": 1, "keep_ema": True} | training
    sft = folder / "sft"
    if not sft.exists():
        make_model("llama", sft)
    return tiny_config(folder, sft, training=fields, warp={"policies": 2, "iterations": 2})


def test_what_does_not_concern_a_run_does_not_name_it(fresh, trainings):
    config = config_of(fresh)
    first = Rollout(config=config)
    for other in (
        changed(config, merge={"eta": 0.7}),
        changed(config, warp={"iterations": 5}),
        changed(config, training={"steps": [3, 9]}),
        changed(config, evaluation={"prompts": 1}),
    ):
        assert trainings.folder(Rollout(config=other)).path == trainings.folder(first).path
        assert trainings.shared(Rollout(config=other)).steps == 3
    second = Rollout(config=config, iteration=2)
    assert trainings.folder(second).path != trainings.folder(first).path
    for other in (changed(config, training={"beta": 0.7}), changed(config, training={"seed": 4})):
        assert trainings.folder(Rollout(config=other)).path != trainings.folder(first).path
    eta = changed(config, merge={"eta": 0.7})
    assert trainings.folder(replace(second, config=eta)).path != trainings.folder(second).path


def test_a_second_iteration_trains_the_first_once(fresh, trainings):
    config = config_of(fresh)
    second = Rollout(config=config, iteration=2, policy=2)
    assert [(one.iteration, one.policy) for one in trainings.needed(second)] == [(1, 1), (1, 2), (2, 2)]
    assert trainings.steps_left(second) == 2
    trainings.finish(second)
    assert trainings.is_done(second)
    assert trainings.steps_left(second) == 0
    other = Rollout(config=changed(config, merge={"eta": 0.9}), iteration=2)
    heard = []
    trainings.hear = heard.append
    trainings.finish(other)
    assert {(one.iteration, one.policy) for one in heard} == {(2, 1)}, "iteration 1 is there already"
    assert trainings.init(other).id != trainings.init(second).id
    taken = trainings.open(Stage(rollout=Rollout(config=config)))
    assert taken.id == trainings.open(trajectory("x", Rollout(config=config)).models[-1].policies[0]).id


def test_a_stopped_run_goes_on_where_it_was(fresh, trainings):
    rollout = Rollout(config=config_of(fresh))
    trainings.should_stop = lambda: True
    with pytest.raises(KeyboardInterrupt):
        trainings.finish(rollout)
    assert not trainings.is_done(rollout)
    assert trainings.steps_left(rollout) == 2
    assert len(trainings.seconds_per_step(rollout)) == 1
    trainings.should_stop = lambda: False
    trainings.finish(rollout)
    assert trainings.is_done(rollout)


def test_a_trajectory_has_the_checkpoints_of_its_run(fresh, trainings):
    rollout = Rollout(config=config_of(fresh))
    trainings.finish(rollout)
    curve, ema = trajectory("run", rollout), trajectory("ema", rollout, ema=True)
    assert curve.at == ema.at == (0.0, 1.0, 2.0, 3.0)
    assert curve.models[0].eta == 0.0
    ids = [trainings.open(model.policies[0]).id for c in (curve, ema) for model in c.models[1:]]
    assert len(set(ids)) == 6
    assert ids[2] == trainings.open(Stage(rollout=rollout)).id


def test_a_run_that_ended_early_stays_where_it_ended(fresh, trainings):
    rollout = Rollout(config=config_of(fresh, evaluate_every=2, kl_ceiling=1e-9))
    trainings.finish(rollout)
    end = trainings.open(Stage(rollout=rollout)).id
    assert trainings.open(Stage(rollout=rollout, step=3)).id == end
    assert trainings.open(Stage(rollout=rollout, step=1)).id != end
    late, last = (trainings.open(Stage(rollout=rollout, step=step, ema=True)).id for step in (3, 2))
    assert late == last != end
