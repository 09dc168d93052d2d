"""A model in memory: load, prompt, sample, score.

prompts.py    read prompts, render them, pad on the left
model.py      load a model and its tokenizer
prefix.py     compute the prompt once for all completions of it
sampling.py   completions with random streams of their own
logprobs.py   what the model thinks of completions
lora.py       LoRA layers for training
"""
