"""What ships beside the package is whole and of the promised size."""

import json

from warp_core.evaluation.points import Point
from warp_core.policy.prompts import read_prompts
from warp_core.training.config import config_to_mapping, load_config
from warp_core.workspace.assets import assets_root
from warp_core.workspace.results import Results
from warp_core.workspace.runs import open_run

RUN = assets_root() / "demo-run"


def size(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_sizes():
    assert size(RUN) < 30e6
    assert size(assets_root() / "reward-model") < 8e6


def test_the_bundled_run_was_made_by_the_published_configuration():
    run = open_run(RUN)
    made, published = (
        config_to_mapping(load_config(path)) for path in (run.config_file, assets_root() / "demo-run.toml")
    )
    assert made == published
    assert run.finished_iterations(3) == [1, 2]
    assert run.about()["sft"]["name"] == "smollm2-135m"
    for which, built_in in (("train", "reviews-train"), ("evaluation", "reviews-eval")):
        assert read_prompts(str(run.prompts_file(which))) == read_prompts(built_in)
    for iteration, steps in ((1, 40), (2, 12)):
        for policy in (1, 2, 3):
            rows = (run.policy(iteration, policy) / "metrics.jsonl").read_text().splitlines()
            assert [json.loads(row)["step"] for row in rows] == list(range(1, steps + 1))


def test_the_bundled_points_stand_on_their_samples():
    store = Results(RUN / "results.sqlite")
    points = [Point.from_json(point) for point in store.list_points(kind="merge")]
    assert len(points) == 2 * 2 * 6
    for point in points:
        samples = store.samples(point.key)
        assert len(samples) == point.n == 128
        assert abs(sum(sample["reward"] for sample in samples) / 128 - point.reward) < 1e-9
        assert abs(sum(sample["kl"] for sample in samples) / 128 - point.kl) < 1e-9
    store.close()


def test_both_configurations_differ_only_in_size():
    demo, run = (load_config(assets_root() / name) for name in ("demo.toml", "demo-run.toml"))
    assert demo.warp.policies == 2
    assert demo.reward == run.reward
    assert demo.prompts == run.prompts
    assert not set(read_prompts(demo.prompts.train)) & set(read_prompts(demo.prompts.evaluation))
