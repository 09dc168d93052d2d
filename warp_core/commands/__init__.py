"""What the commands of `warp-core` do; `warp_core.cli` holds the parser.

answer.py      what a command answers: a JSON document and a text
models.py      geometry, merge, export, check
measure.py     evaluate, front, sample
run.py         train
demo.py        demo
study.py       study
doctor.py      doctor
serve.py       serve: the engine behind HTTP
app.py         app: engine and web app, kept alive by supervise.py, each started through child.py
token_file.py  the engine's token
progress.py    progress on stderr
console.py     lines on stderr
"""
