"""One RL run in a process of its own: `python -m warp_core.training.worker RUN ITERATION POLICY DEVICE`.

Started by `train_warp`, one per GPU. The last line of its output says what went wrong, if anything did.
"""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from warp_core.environment import quiet_threads

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Train one policy of a run; 0 done, 1 a fault, 2 the user's mistake, 130 stopped with its state saved."""
    quiet_threads()
    import torch

    from warp_core.errors import UserError, WarpError
    from warp_core.training.policy_run import train_policy
    from warp_core.training.warp import reopen

    path, iteration, policy, device = arguments
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, frame: stop.append(received))
    try:
        run, config = reopen(Path(path))
        train_policy(
            run,
            config,
            iteration=int(iteration),
            policy=int(policy),
            device=torch.device(device),
            should_stop=lambda: bool(stop),
        )
    except KeyboardInterrupt:
        return 130
    except WarpError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
