import bench.running
from bench.running import run_bench


def put(folder, name, text):
    (folder / "bench").mkdir(exist_ok=True)
    for module in ("__init__", "rows", "settings", "running"):
        source = bench.running.ROOT / "bench" / f"{module}.py"
        (folder / "bench" / f"{module}.py").write_text(source.read_text(encoding="ascii"), encoding="ascii")
    (folder / "bench" / f"{name}.py").write_text(text, encoding="ascii")


GOOD = """
from bench.rows import Row
def measure(settings):
    print("on the way")
    return [Row(bench="good", case=str(settings.threads), quantity="q", value=2.0, unit="s")]
"""


def test_a_bench_gives_its_rows(tmp_path, monkeypatch, settings, capfd):
    put(tmp_path, "good", GOOD)
    monkeypatch.setattr(bench.running, "ROOT", tmp_path)
    outcome = run_bench("good", settings, timeout_s=60)
    assert [(row.case, row.value) for row in outcome.rows] == [("1", 2.0)]
    assert outcome.problem is None
    printed = capfd.readouterr()
    assert "on the way" in printed.err
    assert printed.out == ""


def test_a_bench_that_fails_is_told_and_ends_nothing(tmp_path, monkeypatch, settings, capfd):
    put(tmp_path, "bad", "def measure(settings):\n    raise ValueError('the reason')\n")
    monkeypatch.setattr(bench.running, "ROOT", tmp_path)
    outcome = run_bench("bad", settings, timeout_s=60)
    assert (outcome.rows, outcome.problem) == ([], "ended with code 1; the reason stands above")
    assert "the reason" in capfd.readouterr().err


def test_a_bench_that_hangs_is_ended_with_its_children(tmp_path, monkeypatch, settings):
    sleeper = "import subprocess\ndef measure(settings):\n    subprocess.run(['sleep', '3600'])\n"
    put(tmp_path, "slow", sleeper)
    monkeypatch.setattr(bench.running, "ROOT", tmp_path)
    outcome = run_bench("slow", settings, timeout_s=1.5)
    assert outcome.problem == "took longer than 2 s"
