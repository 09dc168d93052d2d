"""Children that are started, started again, and never left behind; stand-ins of a few lines."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.cli.standins import ended_at_last, environment, has_ended, wait_for
from warp_core.commands import supervise
from warp_core.commands.supervise import Program, Supervisor
from warp_core.errors import ConfigError, UserError, WarpError

# Notes its process id, then: runs | ends with this code | does not listen to SIGTERM
CHILD = """
import os, signal, sys, time
from pathlib import Path

file, does = Path(sys.argv[1]), sys.argv[2]
if does == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with file.open("a") as notes:
    print(os.getpid(), os.environ.get("MARK"), repr(sys.stdin.read()), __name__, file=notes)
if does.isdigit():
    sys.exit(int(does))
while True:
    time.sleep(0.02)
"""

PARENT = """
import sys, time
from pathlib import Path
from warp_core.commands.supervise import Program, Supervisor

program = Program(name="it", command=["standin_child", sys.argv[1], sys.argv[2]], environment={}, answers=lambda: True)
with Supervisor([program], say=print):
    while not Path(sys.argv[1]).exists():
        time.sleep(0.02)
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def program(tmp_path):
    """A program that notes its starts in a file."""
    (tmp_path / "standin_child.py").write_text(CHILD, encoding="utf-8")

    def make(does="runs", *, name="the child"):
        file = tmp_path / f"{name}.notes"
        return Program(
            name=name,
            command=["standin_child", str(file), does],
            environment={"PYTHONPATH": environment(tmp_path)["PYTHONPATH"], "MARK": "marked"},
            answers=file.exists,
        )

    return make


def notes(program):
    """What each start of a program noted; its process id is the first word."""
    file = Path(program.command[1])
    text = file.read_text(encoding="ascii") if file.exists() else ""
    return [line.split() for line in text.splitlines(keepends=True) if line.endswith("\n")]


def pids(program):
    return [int(words[0]) for words in notes(program)]


def test_programs_run_until_the_end_of_the_block(program):
    first, second = program(name="one"), program(name="two")
    with Supervisor([first, second], say=pytest.fail) as supervisor:
        supervisor.wait_until_ready()
        supervisor.look_after()
        (pid,), (other,) = pids(first), pids(second)
        assert not has_ended(pid)
        assert not has_ended(other)
        assert os.getsid(pid) == pid  # Ctrl-C in this terminal does not reach it
        started = time.monotonic()
    assert time.monotonic() - started < 4
    assert has_ended(pid)
    assert has_ended(other)
    # Its environment, a stdin with nothing to read, and the module as the main program.
    assert notes(first) == [[str(pid), "marked", "''", "__main__"]]


def test_what_is_killed_is_started_again(program):
    one, other = program(name="one"), program(name="other")
    said = []
    with Supervisor([one, other], say=said.append, delays_s=(0.05, 0.1)) as supervisor:
        supervisor.wait_until_ready()
        for starts in (1, 2):
            os.kill(pids(one)[-1], signal.SIGKILL)
            wait_for(lambda n=starts: supervisor.look_after() or len(pids(one)) == n + 1)
    assert said == [
        "one ended (killed by SIGKILL): it is started again in 0.05 s",
        "one ended (killed by SIGKILL): it is started again in 0.1 s",
    ]
    assert len(pids(other)) == 1
    assert all(has_ended(pid) for pid in (*pids(one), *pids(other)))


def test_what_hangs_is_ended_and_started_again(program):
    hung, well = program(name="hung"), program(name="well")
    asked, said = [], []
    hung = replace(hung, answers=lambda: asked.append(1) or len(pids(hung)) > 1)
    with Supervisor([hung, well], say=said.append, delays_s=(0.05,), silent_s=0.2, ask_every_s=0.05) as supervisor:
        wait_for(lambda: pids(hung) and pids(well))
        wait_for(lambda: supervisor.look_after() or len(pids(hung)) == 2)
        questions = len(asked)
        wait_for(lambda: supervisor.look_after() or len(asked) > questions + 8)
    assert said == [
        "hung has not answered for 0 s",
        "hung ended (killed by SIGKILL): it is started again in 0.05 s",
    ]
    assert (len(pids(hung)), len(pids(well))) == (2, 1)


def test_a_question_without_an_answer_now_and_then_is_no_matter(program):
    child, answers = program(), [False, True] * 20
    child = replace(child, answers=lambda: answers.pop())
    with Supervisor([child], say=pytest.fail, silent_s=0.05, ask_every_s=0.03) as supervisor:
        wait_for(lambda: supervisor.look_after() or not answers[6:])
        assert len(pids(child)) == 1


def test_what_ends_at_once_is_waited_for_ever_longer(program):
    child, said = program("3"), []
    with Supervisor([child], say=said.append, delays_s=(0.01, 0.2)) as supervisor:
        wait_for(lambda: supervisor.look_after() or len(said) == 3)
    assert said == [f"the child ended (exit code 3): it is started again in {delay} s" for delay in (0.01, 0.2, 0.2)]


def test_after_a_steady_time_the_first_wait_is_short_again(program):
    child, said = program(), []
    with Supervisor([child], say=said.append, delays_s=(0.01, 0.02), steady_s=0.0) as supervisor:
        for starts in (1, 2):
            wait_for(lambda n=starts: len(pids(child)) == n)
            supervisor.look_after()
            os.kill(pids(child)[-1], signal.SIGTERM)
            wait_for(lambda n=starts: supervisor.look_after() or len(said) == n)
            wait_for(lambda n=starts: supervisor.look_after() or len(pids(child)) == n + 1)
    assert said == ["the child ended (killed by SIGTERM): it is started again in 0.01 s"] * 2


@pytest.mark.parametrize(("code", "kind"), [("2", ConfigError), ("1", WarpError)])
def test_a_program_that_does_not_start(program, code, kind):
    child = Program(name="the child", command=program(code).command, environment=program().environment, answers=bool)
    with pytest.raises(kind, match=rf"the child did not start \(exit code {code}\): the lines above say why") as error:
        start_and_wait(child)
    assert isinstance(error.value, UserError) is (code == "2")


def test_a_program_that_never_answers(program):
    child = Program(name="the child", command=program().command, environment=program().environment, answers=bool)
    with pytest.raises(WarpError, match="the child does not answer after 0 s: try again"):
        start_and_wait(child, within_s=0.3)
    assert all(has_ended(pid) for pid in pids(child))


def start_and_wait(child, **options):
    with Supervisor([child], say=pytest.fail) as supervisor:
        supervisor.wait_until_ready(**options)


def test_a_program_that_does_not_listen_is_killed(program, monkeypatch):
    monkeypatch.setattr(supervise, "END_S", 0.3)
    child = program("stubborn")
    with Supervisor([child], say=pytest.fail) as supervisor:
        supervisor.wait_until_ready()
        wait_for(lambda: pids(child))
    assert has_ended(pids(child)[0])


@pytest.mark.parametrize(
    ("number", "does"), [(signal.SIGKILL, "runs"), (signal.SIGHUP, "runs"), (signal.SIGKILL, "stubborn")]
)
def test_children_do_not_outlive_their_parent_however_it_goes(program, tmp_path, number, does):
    child = program(does)
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, *child.command[1:]], env=environment(tmp_path), stdout=subprocess.PIPE
    )
    with ended_at_last(process):
        assert process.stdout.readline() == b"ready\n"
        (pid,) = wait_for(lambda: pids(child))
        process.send_signal(number)
        wait_for(lambda: has_ended(pid), seconds=20)


def test_what_a_child_starts_does_not_hold_its_pipe(program, tmp_path):
    # As a training run does, which outlives the engine: it must not keep the engine from noticing the end.
    (tmp_path / "standin_child.py").write_text(
        CHILD.replace(
            "while True:", "import subprocess\nsubprocess.Popen(['sleep', '30'], start_new_session=True)\nwhile True:"
        ),
        encoding="utf-8",
    )
    child = program()
    with Supervisor([child], say=pytest.fail) as supervisor:
        supervisor.wait_until_ready()
        grandchild = wait_for(lambda: psutil.Process(pids(child)[0]).children() if pids(child) else [])[0]
        started = time.monotonic()
    assert time.monotonic() - started < 4
    assert grandchild.is_running()
    grandchild.kill()
