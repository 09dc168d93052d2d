"""Made-up studies for the engine without models."""

from warp_core.service.documents import StudyClaim, StudyDocument, StudyLine, StudyPanel, StudySummary

__all__ = ["made_up_studies"]

ETAS = (0.0, 0.3, 0.5, 0.8, 1.0)


def made_up_studies() -> list[StudyDocument]:
    """Return one study that held and one that is not finished."""
    return [_liti(), _anchor()]


def _liti() -> StudyDocument:
    said = "LITI of SLERP lies above the runs by 0.42 [0.31, 0.55]"
    return StudyDocument(
        summary=StudySummary(
            name="liti",
            scale="cpu",
            title="LITI",
            figure="Fig. 4a, 9",
            observation="LITI of SLERP lies above the RL trajectories",
            verdict="held",
            sentence=f"Held: {said} (64 prompts, 3 seeds).",
            is_complete=True,
            date="2026-11-20 12:00 UTC",
        ),
        claims=(
            StudyClaim(verdict="held", sentence=said, counts=True),
            StudyClaim(verdict="undecided", sentence="KL is convex in eta: 0.02 [-0.11, 0.14]", counts=False),
        ),
        judge=(StudyClaim(verdict="held", sentence="second judge: 1.2 [0.9, 1.5]", counts=False),),
        panels=(
            StudyPanel(
                x_label="KL to the SFT policy (nats per completion)",
                y_label="reward",
                lines=(
                    _line("SLERP", "#3b6fd4", [8 * eta**2 for eta in ETAS], [2 * eta**0.5 for eta in ETAS]),
                    _line("RL run", "#d1603d", [8 * eta**2 for eta in ETAS], [1.5 * eta for eta in ETAS]),
                ),
            ),
        ),
        made="Scale cpu, seeds 0, 1, 2, 64 held-out prompts x 2 completions.",
        folder="/workspace/runs/studies/cpu/liti",
        files=("cpu.csv", "cpu-claims.csv", "cpu.svg", "cpu.html"),
    )


def _anchor() -> StudyDocument:
    return StudyDocument(
        summary=StudySummary(
            name="anchor",
            scale="cpu",
            title="The anchor",
            figure="Fig. 3a",
            observation="an EMA anchor beats SFT anchors",
            verdict="undecided",
            sentence="Undecided: nothing measured yet; not finished, missing 3 runs.",
            is_complete=False,
            date="2026-11-20 12:00 UTC",
        ),
        claims=(),
        judge=(),
        panels=(),
        made="Scale cpu, seed 0.",
        folder="/workspace/runs/studies/cpu/anchor",
        files=(),
    )


def _line(name: str, color: str, x: list[float], y: list[float]) -> StudyLine:
    notes = tuple(f"eta {eta:g}, seed 0" for eta in ETAS)
    return StudyLine(name=name, color=color, x_P=tuple(x), y_P=tuple(y), y_se_P=(0.1,) * len(x), notes_P=notes)
