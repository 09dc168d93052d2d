"""The project, broken on purpose: one line of it changed, and the tests of the README that have to notice.

A case names the promise that it breaks, the file, what stands there once, and what stands there in the broken copy.
"""

from dataclasses import dataclass

__all__ = ["CASES", "Broken"]

ATTACKS = "tests/hostile/test_attacks.py::test_everything_survives"
PUBLISH = "tests/workspace/test_publish.py"
RUN = "tests/training/test_policy_run.py"
CHECKPOINTS = "tests/weights/test_checkpoints.py"
HEADERS = "tests/weights/test_headers.py"
STEP = "tests/training/test_reinforce.py"
BROWSER = "tests/browser/test_engine.py"
RESIDENT = "tests/weights/test_resident.py"
PATHS = "tests/workspace/test_paths.py"
SERVER = "tests/service/test_server.py"
NOT_FINITE = f"{STEP}::test_numbers_that_are_not_finite_stop_the_step_before_the_update"
SAME_BYTES = (
    f"{RUN}::test_a_run_that_is_killed_at_random_moments_gives_the_same_bytes",
    f"{RUN}::test_a_run_that_is_stopped_and_resumed_gives_the_same_bytes",
)


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A change that breaks a promise.

    Attributes:
        promise: "P1".
        what: the mistake, in a few words.
        file: the file that is changed, from the top of the project.
        old: what stands there, once.
        new: what takes its place.
        noticed_by: tests (pytest's ids, without parameters) each of which has to fail.
    """

    promise: str
    what: str
    file: str
    old: str
    new: str
    noticed_by: tuple[str, ...]


CASES = (
    Broken(
        promise="P1",
        what="a folder is published by a copy instead of a rename",
        file="warp_core/workspace/publish.py",
        old="            temp.rename(out)\n",
        new="            shutil.copytree(temp, out)\n            shutil.rmtree(temp)\n",
        noticed_by=(
            f"{PUBLISH}::test_a_kill_at_every_system_call_of_a_replacement",
            f"{PUBLISH}::test_every_failing_system_call_leaves_old_or_new",
        ),
    ),
    Broken(
        promise="P1",
        what="the old folder is removed before the new one is in its place",
        file="warp_core/workspace/publish.py",
        old="                out.rename(aside)\n                old.append(aside)\n",
        new="                shutil.rmtree(out)\n",
        noticed_by=(
            f"{PUBLISH}::test_a_kill_at_every_system_call_of_a_replacement",
            f"{PUBLISH}::test_a_writer_killed_at_random_moments_leaves_whole_folders",
        ),
    ),
    Broken(
        promise="P1",
        what="files are not synced before the rename",
        file="warp_core/workspace/publish.py",
        old="        path.chmod(0o644)\n        _sync(path)\n",
        new="        path.chmod(0o644)\n",
        noticed_by=(f"{PUBLISH}::test_every_failing_system_call_leaves_old_or_new",),
    ),
    Broken(
        promise="P2",
        what="a resume forgets the EMA anchor",
        file="warp_core/training/reinforce.py",
        old="self.ema[name].copy_(state.ema[name])",
        new="self.ema[name].copy_(state.masters[name])",
        noticed_by=SAME_BYTES,
    ),
    Broken(
        promise="P2",
        what="a resume forgets a moment of Adam",
        file="warp_core/training/reinforce.py",
        old="state.exp_avg_sq[name].to(master.device)",
        new="torch.zeros_like(master)",
        noticed_by=SAME_BYTES,
    ),
    Broken(
        promise="P2",
        what="the log is not cut back to the saved step",
        file="warp_core/training/policy_run.py",
        old="for line in lines[:steps_done]:",
        new="for line in lines:",
        noticed_by=SAME_BYTES[:1],
    ),
    Broken(
        promise="P3",
        what="rows are acknowledged before they are committed",
        file="warp_core/workspace/sqlite.py",
        old='            self.connection.execute("BEGIN IMMEDIATE")\n'
        "            try:\n                yield self.connection\n"
        '                self.connection.execute("COMMIT")\n',
        new="            if not self.connection.in_transaction:\n"
        '                self.connection.execute("BEGIN IMMEDIATE")\n'
        "            try:\n                yield self.connection\n"
        '                if time.monotonic() % 0.1 < 0.05:\n                    self.connection.execute("COMMIT")\n',
        noticed_by=(
            "tests/workspace/test_store.py::test_a_killed_writer_loses_no_acknowledged_row",
            "tests/workspace/test_votes.py::test_a_killed_writer_loses_no_acknowledged_vote_and_no_undo",
        ),
    ),
    Broken(
        promise="P3",
        what="a point that was measured is not stored",
        file="warp_core/workspace/results.py",
        old="        self._store.put_point(key, point, samples)\n",
        new="        return\n",
        noticed_by=(f"{BROWSER}::test_a_measured_place_is_in_the_store_and_on_the_plot",),
    ),
    Broken(
        promise="P4",
        what="code that comes with a model is run",
        file="warp_core/weights/architecture.py",
        old="    full: Mapping[str, Any] = config\n",
        new="    full: Mapping[str, Any] = config\n"
        "    for code in path.parent.glob('*.py'):\n        exec(code.read_text(encoding='utf-8'))\n",
        noticed_by=(f"{CHECKPOINTS}::test_code_in_the_folder_is_not_run",),
    ),
    Broken(
        promise="P4",
        what="pickle is opened where there is nothing else",
        file="warp_core/weights/folders.py",
        old="    if any(name.endswith(_PICKLES) for name in present):\n",
        new="    import pickle\n\n    for name in present:\n        if name.endswith(_PICKLES):\n"
        "            pickle.loads((folder / name).read_bytes())\n"
        "    if any(name.endswith(_PICKLES) for name in present):\n",
        noticed_by=(f"{CHECKPOINTS}::test_pickle_is_never_opened",),
    ),
    Broken(
        promise="P4",
        what="an index may name files of other folders",
        file="warp_core/weights/folders.py",
        old="        entries = read_header(safe_file(folder, name))\n",
        new="        entries = read_header(folder / name)\n",
        noticed_by=(f"{CHECKPOINTS}::test_shard_paths_that_leave_the_folder",),
    ),
    Broken(
        promise="P4",
        what="a header that is no JSON ends in a trace",
        file="warp_core/weights/headers.py",
        old="    except (ValueError, RecursionError) as err:\n",
        new="    except RecursionError as err:\n",
        noticed_by=(f"{HEADERS}::test_a_mutated_file_is_read_or_refused", f"{ATTACKS}[headers]"),
    ),
    Broken(
        promise="P4",
        what="a pipe is opened",
        file="warp_core/weights/headers.py",
        old="        if not stat.S_ISREG(status.st_mode):  # a pipe would hang\n",
        new="        if stat.S_ISSOCK(status.st_mode):\n",
        noticed_by=(f"{HEADERS}::test_a_pipe_does_not_hang",),
    ),
    Broken(
        promise="P5",
        what="shapes are left out of what must be equal",
        file="warp_core/weights/checkpoints.py",
        old="(entry.name, list(entry.shape)) for entry",
        new="entry.name for entry",
        noticed_by=(f"{CHECKPOINTS}::test_tensors_that_do_not_fit",),
    ),
    Broken(
        promise="P5",
        what="the rotary embedding counts as bookkeeping",
        file="warp_core/weights/architecture.py",
        old='r"transformers_version|',
        new='r"transformers_version|rope.*|',
        noticed_by=(f"{CHECKPOINTS}::test_config_fields_that_change_the_function",),
    ),
    Broken(
        promise="P6",
        what="rewards that are not finite count as 0",
        file="warp_core/rewards/base.py",
        old="    if not math.isfinite(number):\n",
        new="    if not math.isfinite(number):\n        return 0.0\n    if False:\n",
        noticed_by=(
            "tests/rewards/test_base.py::test_everything_else_is_an_error_that_names_the_reward",
            f"{STEP}::test_a_bad_reward_never_reaches_the_weights",
        ),
    ),
    Broken(
        promise="P6",
        what="missing rewards are filled up with the last one",
        file="warp_core/rewards/base.py",
        old="    if len(values) != len(batch):\n",
        new="    values = [*values, *values[-1:] * len(batch)][: len(batch)]\n    if len(values) != len(batch):\n",
        noticed_by=(
            "tests/rewards/test_base.py::test_everything_else_is_an_error_that_names_the_reward",
            f"{STEP}::test_a_bad_reward_never_reaches_the_weights",
        ),
    ),
    Broken(
        promise="P6",
        what="a reward is waited for as long as it takes",
        file="warp_core/rewards/function.py",
        old="            thread.join(self.timeout_s)\n",
        new="            thread.join(60 * self.timeout_s)\n",
        noticed_by=("tests/rewards/test_function.py::test_a_function_that_hangs_is_given_up",),
    ),
    Broken(
        promise="P7",
        what="a loss that is not finite goes on to the gradient",
        file="warp_core/training/reinforce.py",
        old="            if not torch.isfinite(loss):\n",
        new="            if False:\n",
        noticed_by=(NOT_FINITE,),
    ),
    Broken(
        promise="P7",
        what="a gradient that is not finite goes on to the weights",
        file="warp_core/training/reinforce.py",
        old='        if norm != norm or norm == float("inf"):\n',
        new="        if False:\n",
        noticed_by=(NOT_FINITE,),
    ),
    Broken(
        promise="P7",
        what="weights that are not finite are saved",
        file="warp_core/training/reinforce.py",
        old="                if not torch.isfinite(tensor).all():\n",
        new="                if False:\n",
        noticed_by=(f"{RUN}::test_weights_that_blow_up_stop_the_run_before_anything_is_saved",),
    ),
    Broken(
        promise="P7",
        what="the last good state is removed before there is a new one",
        file="warp_core/training/policy_run.py",
        old="        record = learner.step()\n",
        new='        shutil.rmtree(folder / "state", ignore_errors=True)\n        record = learner.step()\n',
        noticed_by=(f"{RUN}::test_bad_numbers_leave_the_last_good_state_and_the_run_goes_on_from_it",),
    ),
    Broken(
        promise="P8",
        what="a merge that was made for one session is given to the next one",
        file="warp_core/service/workbench.py",
        old="            blends.append(Blend(key=recipe.id, sources=sources, coefficients=merge))\n",
        new='            kept = self.__dict__.setdefault("_kept", {})\n'
        "            merge = kept.setdefault((selection, len(blends)), merge)\n"
        "            blends.append(Blend(key=recipe.id, sources=sources, coefficients=merge))\n",
        noticed_by=(
            f"{BROWSER}::test_two_sessions_get_the_completions_of_their_own_models",
            f"{ATTACKS}[sessions]",
        ),
    ),
    Broken(
        promise="P9",
        what="a preview stays a thousandth behind the merge",
        file="warp_core/weights/resident.py",
        old="        sources_LK = coefficients.sources_LK[:, : len(self._sources)]\n",
        new="        sources_LK = coefficients.sources_LK[:, : len(self._sources)].copy()\n"
        "        sources_LK[:, 1:] *= 0.999\n",
        noticed_by=(
            f"{RESIDENT}::test_full_checkpoints_move_in_place_as_streamed",
            f"{RESIDENT}::test_adapters_move_in_place_as_streamed",
            f"{ATTACKS}[exports]",
        ),
    ),
    Broken(
        promise="P9",
        what="an export takes the far end instead of the place that is shown",
        file="warp_core/service/exports.py",
        old="    recipe = library.recipe(request.selection, request.place)\n",
        new='    recipe = library.recipe(request.selection, request.place.model_copy(update={"eta": 1.0}))\n',
        noticed_by=(
            f"{BROWSER}::test_an_export_from_the_page_loads_in_transformers_and_is_the_merge",
            f"{ATTACKS}[exports]",
        ),
    ),
    Broken(
        promise="P10",
        what="a name is looked at only where it begins",
        file="warp_core/workspace/paths.py",
        old="    if not _ALLOWED.fullmatch(name) or",
        new="    if not _ALLOWED.match(name) or",
        noticed_by=(f"{PATHS}::test_whatever_passes_stays_inside", f"{ATTACKS}[names]"),
    ),
    Broken(
        promise="P10",
        what="a link may lead out of the workspace",
        file="warp_core/workspace/paths.py",
        old="    if not path.resolve().is_relative_to(root.resolve()):\n",
        new="    if not path.is_relative_to(root):\n",
        noticed_by=(f"{PATHS}::test_a_link_out_of_the_workspace_is_refused",),
    ),
    Broken(
        promise="P11",
        what="texts of models are set as HTML",
        file="app/components/panes/panes.js",
        old="    view.text.textContent = text;\n",
        new="    view.text.innerHTML = text;\n",
        noticed_by=("tests/browser/test_compare.py::test_hostile_text_makes_no_node", f"{ATTACKS}[texts]"),
    ),
    Broken(
        promise="P11",
        what="words that differ are set as HTML",
        file="app/components/panes/panes.js",
        old='    node.textContent = run.pieces.join("");\n',
        new='    const joined = run.pieces.join("");\n'
        "    if (run.isNew) node.innerHTML = joined;\n    else node.textContent = joined;\n",
        noticed_by=("tests/browser/test_explore.py::TestHostileText::test_makes_no_node_and_no_request",),
    ),
    Broken(
        promise="P11",
        what="names of models stand in the report as they are",
        file="warp_core/evaluation/page.py",
        old="</span>{escape(label(point))}</td>",
        new="</span>{label(point)}</td>",
        noticed_by=("tests/evaluation/test_page.py::test_hostile_text_is_shown_as_text",),
    ),
    Broken(
        promise="P11",
        what="a title stands in the picture as it is",
        file="warp_core/evaluation/picture.py",
        old='y="28">{escape(title)}</text>',
        new='y="28">{title}</text>',
        noticed_by=("tests/evaluation/test_picture.py::test_hostile_text_stays_text",),
    ),
    Broken(
        promise="P12",
        what="the app answers to every host name",
        file="app/server.py",
        old="allowed_hosts=list(host_names(host)), www",
        new='allowed_hosts=["*"], www',
        noticed_by=("tests/app/test_server.py::test_a_forged_host_gets_nothing", f"{ATTACKS}[access]"),
    ),
    Broken(
        promise="P12",
        what="every token is the right one",
        file="warp_core/service/guard.py",
        old=' and secrets.compare_digest(token.strip(" ").encode(), self._token)\n',
        new=" and bool(token)\n",
        noticed_by=(f"{SERVER}::test_nothing_without_the_token", f"{ATTACKS}[access]"),
    ),
    Broken(
        promise="P12",
        what="the engine answers to every host name",
        file="warp_core/service/server.py",
        old="allowed_hosts=[*LOCAL_HOSTS, *hosts], www",
        new='allowed_hosts=["*"], www',
        noticed_by=(f"{SERVER}::test_another_name_is_not", f"{ATTACKS}[access]"),
    ),
    Broken(
        promise="P12",
        what="the engine talks to web pages",
        file="warp_core/service/guard.py",
        old='        if "origin" in headers:\n',
        new="        if False:\n",
        noticed_by=(f"{SERVER}::test_no_browser_has_business_here", f"{ATTACKS}[access]"),
    ),
    Broken(
        promise="P13",
        what="want of memory is called a fault of ours",
        file="warp_core/service/faults.py",
        old="    if _is_want_of_memory(error):\n",
        new="    if error is None:\n",
        noticed_by=("tests/service/test_jobs.py::test_out_of_memory_in_plain_words", f"{ATTACKS}[memory]"),
    ),
    Broken(
        promise="P13",
        what="weight files are mapped, so that a truncated one kills the engine",
        file="warp_core/weights/resident.py",
        old="        disable_mmap=True,  # a mapped file that somebody truncates kills the process\n",
        new="",
        noticed_by=(f"{ATTACKS}[files]",),
    ),
    Broken(
        promise="P13",
        what="an engine that has ended is not started again",
        file="warp_core/commands/supervise.py",
        old="        if child.process is None:\n            if now >= child.due_s:\n",
        new="        if child.process is None:\n            if now >= child.due_s + 3600:\n",
        noticed_by=(f"{BROWSER}::test_a_killed_engine_is_reported_and_started_again", f"{ATTACKS}[processes]"),
    ),
    Broken(
        promise="P13",
        what="a training is known only to the engine that has started it",
        file="warp_core/service/trainings.py",
        old="        self._collect()\n        try:\n            record",
        new="        self._collect()\n        if name not in self._children:\n            return None\n"
        "        try:\n            record",
        noticed_by=(
            "tests/service/test_trainings.py::test_a_run_trains_in_a_process_that_another_engine_finds_stops_and_resumes",
        ),
    ),
    Broken(
        promise="P14",
        what="the pages fetch a style from elsewhere",
        file="app/static/style.css",
        old="/* What the theme has no setting for.",
        new='@import url("http://styles.invalid/one.css");\n/* What the theme has no setting for.',
        noticed_by=("tests/browser/test_shell.py::test_all_pages_open_and_keep_the_view",),
    ),
    Broken(
        promise="P14",
        what="a training asks another machine for something",
        file="warp_core/training/warp.py",
        old="    run = prepare_run(config, out, resume=resume)\n    config = run_config(run)\n",
        new="    import socket\n\n    socket.getaddrinfo('models.invalid', 80)\n"
        "    run = prepare_run(config, out, resume=resume)\n    config = run_config(run)\n",
        noticed_by=("tests/test_docs.py::test_the_readme_trains_merges_and_writes_without_a_network",),
    ),
)
