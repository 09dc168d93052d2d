"""A policy over three tokens whose completions can all be written down, for tests of expectations.

The vocabulary is a, b and the end token, which is the padding token too. T completion tokens at most.
"""

import itertools
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny import build_model
from warp_core.policy.logprobs import token_logprobs
from warp_core.policy.model import Policy
from warp_core.policy.prompts import encode_prompts
from warp_core.policy.sampling import Completions, completion_mask

A, B, END = 0, 1, 2
CPU = torch.device("cpu")


def toy_policy(*, seed: int = 0, **config: Any) -> Policy:
    """A random two-layer Llama over {a, b, end} with logits that are far from uniform."""
    ids = {"vocab_size": 3, "pad_token_id": END, "bos_token_id": A, "eos_token_id": END}
    model = build_model("llama", seed=seed, **(ids | {"initializer_range": 0.3} | config)).requires_grad_(False)
    core = Tokenizer(models.WordLevel(vocab={"a": A, "b": B, "<end>": END}, unk_token="b"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<end>")
    return Policy(
        model=model,
        tokenizer=tokenizer,
        eos_ids=(END,),
        pad_id=END,
        takes_positions=True,
        keeps_logits=True,
        shares_prefix=True,
    )


def all_token_rows(length: int) -> list[list[int]]:
    """Every completion of at most `length` tokens, as rows padded with END: 2^(T+1) - 1 of them."""
    rows = []
    for stop in range(length):
        rows += [[*body, END] for body in itertools.product((A, B), repeat=stop)]
    rows += [list(body) for body in itertools.product((A, B), repeat=length)]
    return [row + [END] * (length - len(row)) for row in rows]


def all_completions(policy: Policy, *, prompt: str, length: int, temperature: float) -> Completions:
    """Every completion of `prompt` once, with its log-probabilities under the policy."""
    rows = torch.tensor(all_token_rows(length))
    batch = encode_prompts([prompt], policy.tokenizer, chat_template=False, device=CPU).repeat(len(rows))
    mask = completion_mask(rows, policy.eos_ids)
    bare = Completions(
        prompts=batch,
        tokens_BT=rows,
        mask_BT=mask,
        logp_BT=torch.zeros(rows.shape),
        texts=tuple(policy.tokenizer.batch_decode(rows, skip_special_tokens=True)),
    )
    with torch.no_grad():
        logp_BT = token_logprobs(policy, bare, temperature=temperature)
    return Completions(prompts=batch, tokens_BT=rows, mask_BT=mask, logp_BT=logp_BT, texts=bare.texts)
