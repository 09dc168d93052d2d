"""Python that loads an exported model elsewhere, for copying: transformers or PEFT, and vLLM.

Every name is written as a Python literal, so whatever it holds, the snippet is a valid program and nothing else.
"""

__all__ = ["adapter_snippets", "model_snippets"]

# Ranks that vLLM compiles its adapter kernels for.
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def model_snippets(folder: str, *, prompt: str, chat: bool, max_new_tokens: int, temperature: float) -> tuple[str, str]:
    """Return the snippets of a whole model: (transformers, vLLM).

    Args:
        folder: where it lies.
        prompt: what to say to it.
        chat: whether it is spoken to through its chat template.
        max_new_tokens: length limit.
        temperature: of sampling.
    """
    loading = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"folder = {folder!r}",
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        'model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")',
    ]
    vllm = [
        "from vllm import LLM, SamplingParams",
        "",
        f"llm = LLM(model={folder!r})",
        *_vllm_sampling(prompt, chat, max_new_tokens, temperature),
    ]
    return _text([*loading, *_generating(prompt, chat, max_new_tokens, temperature)]), _text(vllm)


def adapter_snippets(
    folder: str, *, base: str, name: str, rank: int, prompt: str, chat: bool, max_new_tokens: int, temperature: float
) -> tuple[str, str]:
    """Return the snippets of an adapter: (PEFT, vLLM). `base` is the folder or Hub id of the base model, `rank` the
    largest of the adapter; the rest as in `model_snippets`.
    """
    loading = [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"base = {base!r}",
        "tokenizer = AutoTokenizer.from_pretrained(base)",
        'model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")',
        f"model = PeftModel.from_pretrained(model, {folder!r})",
    ]
    most = next((allowed for allowed in VLLM_RANKS if allowed >= rank), rank)
    vllm = [
        "from vllm import LLM, SamplingParams",
        "from vllm.lora.request import LoRARequest",
        "",
        f"llm = LLM(model={base!r}, enable_lora=True, max_lora_rank={most})",
        f"adapter = LoRARequest({name!r}, 1, {folder!r})",
        *_vllm_sampling(prompt, chat, max_new_tokens, temperature, adapted=True),
    ]
    return _text([*loading, *_generating(prompt, chat, max_new_tokens, temperature)]), _text(vllm)


def _generating(prompt: str, chat: bool, max_new_tokens: int, temperature: float) -> list[str]:
    if chat:
        asked = [
            f'messages = [{{"role": "user", "content": {prompt!r}}}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ")",
        ]
    else:
        asked = [f'inputs = tokenizer({prompt!r}, return_tensors="pt")']
    return [
        *asked,
        f"how = dict(max_new_tokens={max_new_tokens}, do_sample=True, temperature={temperature})",
        "output = model.generate(**inputs, **how)",
        "print(tokenizer.decode(output[0], skip_special_tokens=True))",
    ]


def _vllm_sampling(
    prompt: str, chat: bool, max_new_tokens: int, temperature: float, *, adapted: bool = False
) -> list[str]:
    lora = ", lora_request=adapter" if adapted else ""
    asked = f'llm.chat([{{"role": "user", "content": {prompt!r}}}], ' if chat else f"llm.generate([{prompt!r}], "
    return [
        f"params = SamplingParams(max_tokens={max_new_tokens}, temperature={temperature})",
        f"outputs = {asked}params{lora})",
        "print(outputs[0].outputs[0].text)",
    ]


def _text(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"
