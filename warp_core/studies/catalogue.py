"""The studies by name, in the order in which `study all` runs them: what many share comes first."""

from warp_core.errors import ConfigError
from warp_core.studies import (
    anchor,
    benchmark,
    diversity,
    geometry,
    hyper,
    iterate,
    length,
    liti,
    preference,
    scaling_m,
    slerp,
)
from warp_core.studies.outcome import Study

__all__ = ["NAMES", "STUDIES", "chosen_studies"]

_MODULES = (slerp, liti, geometry, diversity, anchor, iterate, preference, benchmark, scaling_m, hyper, length)
STUDIES: dict[str, Study] = {module.STUDY.name: module.STUDY for module in _MODULES}
NAMES = tuple(STUDIES)


def chosen_studies(name: str) -> list[Study]:
    """Return one study, or with `all` every one.

    Raises:
        ConfigError: there is none of that name.
    """
    if name == "all":
        return list(STUDIES.values())
    if name not in STUDIES:
        raise ConfigError(f"no study {name[:60]!r}: choose all or one of {', '.join(NAMES)}")
    return [STUDIES[name]]
