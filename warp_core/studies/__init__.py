"""The paper's figures and tables (Rame et al. 2024, arXiv 2406.16768), one module each, and what they share.

plan.py          the words of a study: RL runs, checkpoints of them, merges, curves
scales.py        presets: smoke (a tiny random model), cpu (SmolLM2 with LoRA), gpu (full fine-tuning)
tiny.py          the tiny random model of the smoke preset
trainings.py     RL runs by the hash of their configuration: trained once, resumable, shared by all studies
lab.py           measures what a study asks and does not have yet; stops at a deadline, goes on next time
texts.py         negative log-likelihood of held-out text, and lm-evaluation-harness where it is installed
judge.py         the second judge, which tells reward gained from reward hacked
claims.py        differences of curves with bootstrap intervals over prompts and seeds, and verdicts
outcome.py       what a study found: claims, curves, one sentence; its JSON
figures.py, page.py, picture.py, report.py     what is drawn, as an interactive page, as SVG, all files of a study
catalogue.py     the eleven studies by name
"""
