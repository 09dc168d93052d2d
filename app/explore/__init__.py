"""The parts of the explore page.

state.py          what a rerun works with: selection, view, points, geometry, prediction, jobs
selection.py      pick a run and iteration, or checkpoints on disk with a check first
plot.py           the pilot in its live fragment
card.py           the position: recipe, measured or predicted metrics, differences, buttons
preview.py        prompt, and the panes that stream
votes.py          votes on pairs of texts, blind on demand, and their summary
pins.py           the table of pins
mixing.py, differences.py, tables.py, formula.py     pure: coefficients, paired differences, CSV, recipe in words
"""
