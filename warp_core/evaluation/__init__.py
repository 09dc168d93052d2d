"""What a policy is worth: reward, KL to the SFT policy, length, diversity, and the fronts they make.

points.py       samples, evaluations and points
evaluate.py     sample, score, compare with the SFT policy
kl.py           the two KL estimators
statistics.py   means with errors, paired differences
paired.py       points and whole curves beside each other, on the same prompts
diversity.py    how unlike completions of one prompt are
fronts.py       dominated points, Pareto front, hypervolume
sweep.py        the points of a run's fronts, stored
report.py       terminal table, CSV; page.py, picture.py, series.py draw
"""
