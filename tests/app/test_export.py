"""The Export page: which model, its name and form, the job, the report, and the command line that does the same."""

import shlex

import pytest

from app.export.recipes import command, default_name, no_adapter, place_problem, shard_problem
from app.export.reports import verdict
from app.view import Pin, View
from tests.app.pages_seen import button, codes, component, press, seen
from warp_core.cli import build_parser
from warp_core.errors import WorkspaceError
from warp_core.service.documents import ExportReport
from warp_core.service.fake_text import HOSTILE
from warp_core.service.protocol import SFT, ExportRequest, JobState, Place, Selection
from warp_core.training.config import config_from_mapping

RUN = Selection(run="demo-run")
LOOSE = Selection(init="/models/sft", policies=("/models/a b", "/models/c"))
LOOSE_VIEW = View(init="/models/sft", policies=("/models/a", "/models/b"))
HALF = Place(eta=0.5)


def request(place: Place = HALF, *, selection: Selection = RUN, **fields) -> ExportRequest:
    return ExportRequest(session="s", selection=selection, place=place, name="x", **fields)


class TestNames:
    @pytest.mark.parametrize(
        ("place", "name"),
        [
            (Place(eta=0.3), "demo-run-i1-slerp-eta0.3"),
            (Place(iteration=2, method="lerp", eta=1.0), "demo-run-i2-lerp-eta1"),
            (Place(weights=(0.2, 0.8), eta=1.5), "demo-run-i1-slerp-w0.2-0.8-eta1.5"),
            (Place(weights=(0.5, 0.5), eta=0.5), "demo-run-i1-slerp-eta0.5"),
            (Place(iteration=2, eta=0.3, towards="init"), "demo-run-i2-slerp-eta0.3-to-init"),
            (Place(iteration=1, eta=0.3, towards="init"), "demo-run-i1-slerp-eta0.3"),
            (Place(method="lerp", weights=(0.0, 1.0), eta=1.0), "demo-run-i1-policy-2"),
            (SFT, "demo-run-sft"),
        ],
    )
    def test_a_name_says_what_the_model_is(self, place, name):
        assert default_name(RUN, place) == name

    def test_models_from_anywhere(self):
        assert default_name(LOOSE, HALF) == "a-b-i1-slerp-eta0.5"
        assert default_name(Selection(init="x", policies=("owner/model@v1",)), HALF) == "model-v1-i1-slerp-eta0.5"
        assert default_name(Selection(init="x", policies=("///",)), HALF) == "model-i1-slerp-eta0.5"


class TestRules:
    def test_shares(self):
        assert place_problem(HALF, 3) is None
        assert place_problem(Place(weights=(0.3333, 0.3333, 0.3333)), 3) is None
        assert "add up to 0.9" in place_problem(Place(weights=(0.5, 0.4)), 2)
        assert "2 shares for 3" in place_problem(Place(weights=(0.5, 0.5)), 3)

    @pytest.mark.parametrize("size", ["5GB", "200 MB", "1.5GiB", "1000000", "2kb"])
    def test_sizes(self, size):
        assert shard_problem(size) is None

    @pytest.mark.parametrize("size", ["", "big", "-5GB", "5XB", "GB"])
    def test_no_sizes(self, size):
        assert "such as" in shard_problem(size)

    def test_why_there_is_no_adapter(self):
        assert no_adapter(HALF, kinds={"adapter"}) is None
        assert "full checkpoints" in no_adapter(HALF, kinds={"full"})
        assert "full checkpoints" in no_adapter(HALF, kinds={"full", "adapter"})
        assert "SLERP of weights" in no_adapter(Place(method="slerp-weights"), kinds={"adapter"})
        assert "base itself" in no_adapter(SFT, kinds={"adapter"})


class TestCommand:
    def test_of_a_run(self):
        line = command(request(Place(eta=0.3)), run_path="/runs/demo", out="/exports/x", config=None)
        assert line == "warp-core export /runs/demo --iteration 1 --method slerp --eta 0.3 --out /exports/x"

    def test_everything_unusual(self):
        place = Place(iteration=2, method="lerp", weights=(0.25, 0.75), eta=1.25, towards="init")
        wanted = request(place, form="adapter", dtype="bfloat16", max_shard_size="200MB")
        config = {"merge": {"granularity": "tensor"}}
        line = command(wanted, run_path="/a b", out="/o", config=config)
        assert line.startswith("warp-core export '/a b' --iteration 2 --to-init --method lerp --weights 0.25 0.75")
        assert line.endswith("--granularity tensor --as adapter --dtype bfloat16 --max-shard-size 200MB --out /o")

    def test_of_models_from_anywhere(self):
        line = command(request(selection=LOOSE), run_path=None, out="/o", config=None)
        assert line.startswith("warp-core merge --init /models/sft --policies '/models/a b' /models/c --method slerp")

    @pytest.mark.parametrize(("selection", "path"), [(RUN, "/runs/demo"), (LOOSE, None)])
    def test_the_command_line_understands_it(self, selection, path):
        place = Place(weights=(0.25, 0.75), eta=0.1 + 0.2)
        wanted = request(place, selection=selection, dtype="float16", form="adapter", max_shard_size="2GiB")
        line = command(wanted, run_path=path, out="/o", config={"merge": {"granularity": "model"}})
        args = build_parser().parse_args(shlex.split(line)[1:])
        assert (args.eta, args.weights, args.dtype, args.out) == (0.3, [0.25, 0.75], "float16", "/o")


def report(**changes) -> ExportReport:
    values = {
        "out": "/o",
        "recipe": {},
        "num_params": 10,
        "size_bytes": 40,
        "wall_s": 1.0,
        "files": ("config.json",),
        "verified": True,
        "max_difference": 0.0,
        "completions": (("p", "a", "a"), ("q", "b", "b")),
        "snippet_transformers": "",
        "snippet_vllm": "",
    }
    return ExportReport(**(values | changes))


class TestVerdict:
    def test_equal(self):
        is_good, words = verdict(report())
        assert is_good
        assert words == (
            "Read back from the folder: all parameters are exactly equal, and 2 of 2 greedy completions are the same, "
            "word for word."
        )

    def test_equal_up_to_rounding(self):
        is_good, words = verdict(report(max_difference=3.1e-8, completions=()))
        assert is_good
        assert "equal up to 3.1e-08." in words

    def test_different(self):
        is_good, words = verdict(report(verified=False, max_difference=0.5))
        assert not is_good
        assert "do not use it" in words

    def test_other_parameters(self):
        assert "does not have the same parameters" in verdict(report(verified=False, max_difference=None))[1]

    def test_not_asked_for(self):
        is_good, words = verdict(report(verified=None, max_difference=None, completions=()))
        assert not is_good
        assert "you asked for no check" in words


@pytest.fixture
def page(open_page):
    return open_page("export", view=View(run="demo-run", place=Place(eta=0.3), pins=(Pin(place=HALF, label="mine"),)))


def name_field(page):
    return next(one for one in page.text_input if one.key.startswith("export-name"))


def asked(fake) -> ExportRequest:
    """What was asked of the engine last."""
    return fake._queue.find(fake.jobs()[0].id).request


class TestChoice:
    def test_the_position_of_explore_comes_first(self, page):
        assert not page.exception
        recipe = component(page, "export-recipe")["recipe"]
        assert recipe["title"] == "SLERP, eta 0.3"
        assert recipe["badge"] == "measured"
        assert recipe["note"].startswith("reward ")
        assert name_field(page).value == "demo-run-i1-slerp-eta0.3"

    def test_a_pin(self, page, fake):
        page.selectbox(key="export-source").set_value("0").run()
        assert name_field(page).value == "demo-run-i1-slerp-eta0.5"
        press(page, "export-go")
        assert asked(fake).place == HALF

    def test_a_place_of_ones_own(self, page, fake):
        page.selectbox(key="export-source").set_value("own").run()
        page.number_input(key="export-eta").set_value(0.8).run()
        page.number_input(key="export-weight-0").set_value(0.5).run()
        assert "The shares add up to 1.1666" in seen(page)
        assert button(page, "export-go") is None
        page.number_input(key="export-weight-1").set_value(0.5).run()
        page.number_input(key="export-weight-2").set_value(0.0).run()
        assert component(page, "export-recipe")["recipe"]["badge"] == "not measured"
        press(page, "export-go")
        assert asked(fake).place == Place(weights=(0.5, 0.5, 0.0), eta=0.8)

    def test_an_iteration_that_is_not_finished(self, open_page, fake):
        fake._runs["demo-run"].steps_done = 125
        page = open_page("export", view=View(run="demo-run", place=Place(iteration=2)))
        assert "Iteration 2 is not finished yet" in seen(page)
        assert button(page, "export-go") is None

    def test_nothing_to_export(self, open_page):
        assert "Choose a run" in seen(open_page("export", view=View()))
        assert "No finished iteration yet" in seen(open_page("export", view=View(run="training-now")))


class TestForm:
    def test_a_name_that_somebody_wrote_stays(self, page):
        name_field(page).set_value("mine").run()
        page.selectbox(key="export-source").set_value("0").run()
        assert name_field(page).value == "mine"

    def test_an_empty_name_is_no_name(self, page):
        name_field(page).set_value("").run()
        assert "a name is empty" in seen(page)
        assert button(page, "export-go").disabled

    def test_the_name_follows_again_once_it_is_the_models(self, page):
        name_field(page).set_value("mine").run()
        name_field(page).set_value("demo-run-i1-slerp-eta0.3").run()
        page.selectbox(key="export-source").set_value("0").run()
        assert name_field(page).value == "demo-run-i1-slerp-eta0.5"

    @pytest.mark.parametrize(("name", "problem"), [("../x", "not safe"), ("nul", "a device")])
    def test_a_name_that_cannot_be(self, page, name, problem):
        name_field(page).set_value(name).run()
        assert problem in seen(page)
        assert button(page, "export-go").disabled

    def test_the_target_folder_is_shown(self, page):
        assert codes(page)[0] == "/workspace/runs/exports/demo-run-i1-slerp-eta0.3"

    def test_an_adapter_has_no_shards(self, page, fake):
        page.selectbox(key="export-form").set_value("adapter").run()
        assert "export-shard" not in [one.key for one in page.text_input]
        press(page, "export-go")
        assert (asked(fake).form, asked(fake).max_shard_size) == ("adapter", "5GB")

    def test_dtype_and_shard_size(self, page, fake):
        page.selectbox(key="export-dtype").set_value("bfloat16").run()
        page.text_input(key="export-shard").set_value("big").run()
        assert button(page, "export-go").disabled
        page.text_input(key="export-shard").set_value("200MB").run()
        page.toggle(key="export-verify").set_value(False).run()
        press(page, "export-go")
        assert (asked(fake).dtype, asked(fake).max_shard_size, asked(fake).verify) == ("bfloat16", "200MB", False)

    def test_full_policies_have_no_adapter_form(self, open_page, fake):
        run = fake._runs["demo-run"]
        config = fake.run("demo-run").config
        config["adapter"]["kind"] = "full"
        run.config = config_from_mapping(config)
        page = open_page("export", view=View(run="demo-run", place=HALF))
        assert page.selectbox(key="export-form").options == ["full model"]
        assert "full checkpoints" in seen(page)

    def test_the_form_falls_back_where_there_is_no_adapter(self, page):
        page.selectbox(key="export-form").set_value("adapter").run()
        page.selectbox(key="export-source").set_value("own").run()
        page.number_input(key="export-eta").set_value(0.0).run()
        assert page.selectbox(key="export-form").value == "full"
        assert "base itself" in seen(page)


class TestJob:
    def test_progress_then_the_report(self, page, fake):
        press(page, "export-go")
        assert "Export SLERP, eta 0.3 as demo-run-i1-slerp-eta0.3" in seen(page)
        assert len(page.get("progress")) == 1
        assert button(page, "export-go").disabled, "one at a time"
        fake.advance(10)
        page.run()
        assert not page.exception
        text = seen(page)
        assert "verified" in text
        assert "all parameters are exactly equal" in text
        assert "134.5 M parameters, 538 MB" in text
        shown = codes(page)
        assert "/workspace/exports/demo-run-i1-slerp-eta0.3" in shown
        assert any("from_pretrained" in code for code in shown)
        assert any(code.startswith("vllm serve") for code in shown)
        assert any(code.startswith("warp-core export /workspace/runs/demo-run --iteration 1") for code in shown)
        assert "tokenizer.json" in text

    def test_the_same_name_again(self, page, fake):
        press(page, "export-go")
        fake.advance(10)
        page.run()
        assert "Exported under this name" in seen(page)
        assert button(page, "export-go").disabled
        name_field(page).set_value("again").run()
        assert not button(page, "export-go").disabled

    def test_earlier_exports_stay_listed(self, page, fake):
        for name in ("one", "two"):
            name_field(page).set_value(name).run()
            press(page, "export-go")
            fake.advance(10)
            page.run()
        assert [one.label for one in page.expander if one.label.startswith("one")] == ["one: done"]
        fake._queue._jobs.clear()
        page.run()
        assert [one.label for one in page.expander if one.label.startswith("one")] == ["one: done"]

    def test_cancel(self, page, fake, monkeypatch):
        monkeypatch.setattr(fake, "_pace", 1e9)  # so that it does not end while the page looks at it
        press(page, "export-go")
        press(page, f"export-cancel-{fake.jobs()[0].id}")
        page.run()
        assert fake.jobs()[0].state is JobState.CANCELLED
        assert "cancelled" in seen(page)
        assert not button(page, "export-go").disabled

    def test_a_failure_is_said_in_the_engines_words(self, open_page, fake):
        page = open_page("export", view=View(run="demo-run", place=Place(eta=1.99), extrapolate=True))
        press(page, "export-go")
        fake.advance(10)
        page.run()
        assert "the task vectors are opposite" in seen(page)
        assert not button(page, "export-go").disabled

    def test_a_refusal_is_said(self, page, fake, monkeypatch):
        def refuse(request):
            raise WorkspaceError("/workspace/exports/x exists: choose another name")

        monkeypatch.setattr(fake, "submit", refuse)
        press(page, "export-go")
        assert "exists: choose another name" in seen(page)

    def test_an_engine_that_was_restarted_meanwhile(self, page, fake):
        press(page, "export-go")
        fake._queue._jobs.clear()
        page.run()
        assert "the engine was restarted while demo-run-i1-slerp-eta0.3 was written" in seen(page)
        assert not button(page, "export-go").disabled

    def test_what_models_say_is_text(self, page, fake, monkeypatch):
        hostile = report(completions=((HOSTILE, HOSTILE, HOSTILE),), files=("<b>x</b>",)).model_dump(mode="json")
        monkeypatch.setattr(fake, "_result", lambda job: hostile)
        press(page, "export-go")
        for job in fake._queue._jobs.values():
            job.result = lambda job: hostile
        fake.advance(10)
        page.run()
        assert not page.exception
        assert all("evil.example" not in one.value for one in (*page.markdown, *page.caption))
        assert HOSTILE.strip() in [code.strip() for code in codes(page)]


class TestLoose:
    def test_checkpoints_of_no_run_are_looked_at_first(self, open_page, fake):
        page = open_page("export", view=LOOSE_VIEW)
        assert button(page, "export-go") is None
        assert "Check the checkpoints" in seen(page)
        fake.advance(5)
        page.run()
        assert button(page, "export-go") is not None
        assert page.selectbox(key="export-form").options == ["full model", "adapter (PEFT)"]
        assert name_field(page).value == "a-i1-slerp-eta0.5"
        press(page, "export-go")
        fake.advance(10)
        page.run()
        assert any(code.startswith("warp-core merge --init /models/sft --policies") for code in codes(page))
        assert sum(job.kind == "check" for job in fake.jobs()) == 1

    def test_what_cannot_be_mixed_is_said(self, open_page, fake):
        page = open_page("export", view=View(init="/models/sft", policies=("/models/broken",)))
        fake.advance(5)
        page.run()
        assert "choose checkpoints of one architecture" in seen(page)
        assert button(page, "export-go") is None
