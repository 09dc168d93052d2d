"""Stage 1 and Algorithm 1: RL runs with an EMA anchor, merged and iterated.

config.py       the configuration
objective.py    return, baseline, REINFORCE, EMA: pure functions
trainable.py    what is trained: an adapter or every weight
reinforce.py    one step of Algorithm 1
state.py        the exact state of a run
policy_run.py   one RL run in a run folder
warp.py         the outer loop: runs, SLERP, LITI
parallel.py     the runs of an iteration on several devices
worker.py       one RL run as a process
"""
