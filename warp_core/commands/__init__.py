"""What the commands of `warp-core` do; `warp_core.cli` holds the parser.

answer.py      what a command answers: a JSON document and a text
models.py      geometry, merge, export, check
measure.py     evaluate, front, sample
run.py         train
demo.py        demo
doctor.py      doctor
progress.py    progress on stderr
"""
