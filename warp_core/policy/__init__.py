"""A model in memory: load, prompt, sample, score.

prompts.py    read prompts, render them, pad on the left
model.py      load a model
tokenizer.py  load its tokenizer, once for all folders with the same one
prefix.py     compute the prompt once for all completions of it
sampling.py   completions with random streams of their own
inference.py  packed weights for a block without gradients; the decoder of a policy
decoding.py   token after token: cache, padding, rows that leave
llama.py      a fused forward pass for models built like Llama
kernels.py    linear layers in the processor's own layout
bank.py       one base, another merge of adapters in every row
logprobs.py   what the model thinks of completions
lora.py       LoRA layers for training
"""
