"""Sequence-classification models as rewards: labels, text, batching, unsafe folders."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.rewards.tiny_classifier import make_classifier
from tests.tiny import make_model
from warp_core.errors import RewardError
from warp_core.rewards import RewardBatch, load_reward
from warp_core.rewards.classifier import _chunks, choose_label, join_text, label_log_odds, load_classifier

TEXTS = ("good", "a rather longer text, about nothing", "", "x", "caf\u00e9 " * 5)


def batch_of(*completions: str, prompt: str = "") -> RewardBatch:
    count = len(completions)
    return RewardBatch(prompts=(prompt,) * count, completions=completions, num_tokens=(1,) * count)


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return make_classifier(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def broken(bert, tmp_path) -> Path:
    """A copy to break."""
    return shutil.copytree(bert, tmp_path / "broken")


def test_log_odds_by_hand():
    logits_BK = torch.tensor([[1.0, 3.0], [0.0, -0.5]])
    assert label_log_odds(logits_BK, label=1, independent=False).tolist() == [2.0, -0.5]
    assert label_log_odds(logits_BK, label=0, independent=False).tolist() == [-2.0, 0.5]
    assert label_log_odds(logits_BK, label=1, independent=True).tolist() == [3.0, -0.5]
    assert label_log_odds(torch.tensor([[0.25]]), label=0, independent=False).tolist() == [0.25]


def test_log_odds_of_three_labels_are_those_of_the_softmax():
    # p = 0.5, 0.25, 0.25: odds of the first 1, of the second 1/3
    logits_BK = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log() + 7.0
    assert label_log_odds(logits_BK, label=0, independent=False).item() == pytest.approx(0.0, abs=1e-12)
    assert label_log_odds(logits_BK, label=1, independent=False).item() == pytest.approx(math.log(1 / 3))


@pytest.mark.parametrize(
    ("labels", "wanted", "index"),
    [
        (["NEGATIVE", "POSITIVE"], None, 1),
        (["positive", "negative"], None, 0),
        (["LABEL_0", "LABEL_1"], None, 1),
        (["score"], None, 0),
        (["sad", "happy", "angry"], "Happy", 1),
        (["sad", "happy", "angry"], "2", 2),
        (["POSITIVE", "NEGATIVE"], "NEGATIVE", 1),
        (["1", "0"], "0", 1),  # a label goes before an index
    ],
)
def test_which_label_is_the_reward(labels, wanted, index):
    assert choose_label(dict(enumerate(labels)), wanted=wanted, independent=False, name="r") == index


@pytest.mark.parametrize(
    ("labels", "wanted", "message"),
    [
        (["sad", "happy", "angry"], None, "which of the labels sad, happy, angry is good.* r#angry"),
        (["ham", "spam"], None, "which of the labels ham, spam is good"),
        (["sad", "happy"], "hapy", "has no label 'hapy'; its labels are sad, happy"),
        (["sad", "happy"], "2", "has no label '2'"),
    ],
)
def test_a_label_that_is_not_clear(labels, wanted, message):
    with pytest.raises(RewardError, match=message):
        choose_label(dict(enumerate(labels)), wanted=wanted, independent=False, name="r")


@pytest.mark.parametrize(
    ("prompt", "completion", "text"),
    [
        ("The film is", " good", "The film is good"),
        ("The film is", "good", "The film is good"),
        ("The film is ", "good", "The film is good"),
        ("The film", ", which", "The film, which"),
        ("The film", "'s end", "The film's end"),
        ("", "good", "good"),
        ("The film", "", "The film"),
    ],
)
def test_prompt_and_completion_become_one_text(prompt, completion, text):
    assert join_text(prompt, completion) == text


def test_chunks_hold_like_lengths_and_every_index_once():
    chunks = _chunks([5000, 1, 4000, 2, 4096, 3])
    assert chunks == [[1, 3, 5], [2, 4], [0]]  # 3 * 3, 2 * 4096 tokens, 5000
    assert _chunks([]) == []


def test_scores_equal_plain_transformers(bert):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    scores_B = load_reward([str(bert)])(batch_of("good", prompt="It is")).total_B
    model = AutoModelForSequenceClassification.from_pretrained(bert).eval()
    inputs = AutoTokenizer.from_pretrained(bert)("It is good", return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[0]
    assert scores_B.item() == pytest.approx(float(logits[1] - logits[0]), abs=1e-6)


@pytest.mark.parametrize("settings", [{"family": "bert"}, {"family": "roberta"}, {"family": "llama"}])
def test_scores_do_not_depend_on_the_rest_of_the_batch(tmp_path, settings):
    folder = make_classifier(tmp_path / "m", **settings)
    reward = load_reward([str(folder)])
    together_B = reward(batch_of(*TEXTS)).total_B
    alone_B = torch.cat([reward(batch_of(text)).total_B for text in TEXTS])
    assert torch.allclose(together_B, alone_B, atol=1e-5)
    assert together_B.std() > 0.01
    assert torch.equal(together_B, reward(batch_of(*TEXTS)).total_B)


def test_a_decoder_without_padding_token(tmp_path):
    folder = make_classifier(tmp_path / "m", family="llama", labels=("score",), pad=False)
    reward = load_reward([str(folder)])
    together_B = reward(batch_of("good", "a longer text")).total_B
    alone_B = torch.cat([reward(batch_of(text)).total_B for text in ("good", "a longer text")])
    assert torch.allclose(together_B, alone_B, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
def test_long_text_loses_its_beginning(tmp_path, family):
    reward = load_reward([str(make_classifier(tmp_path / "m", family=family))])
    end = "the same end" * 20
    scores_B = reward(batch_of("A" * 100 + end, "B" * 300 + end, end)).total_B
    assert scores_B[0].item() == pytest.approx(scores_B[1].item(), abs=1e-5)
    assert scores_B[0].item() == pytest.approx(scores_B[2].item(), abs=1e-5)


def test_a_chat_template_is_used(tmp_path):
    plain = load_classifier(make_classifier(tmp_path / "a"), name="a")
    chat = load_classifier(make_classifier(tmp_path / "b", chat=True), name="b")
    batch = batch_of("Fine.", prompt="How is it?")
    assert chat.tokenizer.decode(chat._encode(batch.prompts, batch.completions)[0]) == (
        "<|user|>How is it?<eos><|assistant|>Fine.<eos>"
    )
    assert plain.tokenizer.decode(plain._encode(batch.prompts, batch.completions)[0]) == "How is it? Fine."


def test_labels_of_a_folder(tmp_path):
    folder = make_classifier(tmp_path / "m", labels=("sad", "happy", "angry"))
    parts = load_reward([f"{folder}#happy", f"{folder}#0:0.5"])(batch_of("x", "y")).parts
    assert list(parts) == [f"{folder}#happy", f"{folder}#0"]
    with pytest.raises(RewardError, match="which of the labels sad, happy, angry"):
        load_reward([str(folder)])


def test_independent_labels_give_the_raw_logit(tmp_path):
    labels = ("toxic", "insult")
    exclusive = load_reward([f"{make_classifier(tmp_path / 'a', labels=labels)}#toxic"])(batch_of("x")).total_B
    folder = make_classifier(tmp_path / "b", labels=labels, problem_type="multi_label_classification")
    toxic, insult = (load_reward([f"{folder}#{label}"])(batch_of("x")).total_B for label in labels)
    assert exclusive.item() == pytest.approx((toxic - insult).item(), abs=1e-6)


def test_the_model_is_in_eval_mode_and_float32(bert):
    reward = load_classifier(bert, name="r")
    assert not reward.model.training
    assert reward.model.dtype == torch.float32
    assert load_classifier(bert, name="r", dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_the_id_is_of_the_content_not_of_the_place(bert, broken):
    assert load_reward([str(bert)]).id == load_reward([str(broken)]).id
    weights = load_file(broken / "model.safetensors")
    weights["classifier.bias"] += 1.0
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    assert load_reward([str(bert)]).id != load_reward([str(broken)]).id


def edit_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_pickle_is_never_opened(broken):
    (broken / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, broken / "pytorch_model.bin")
    with pytest.raises(
        RewardError, match=r"has no model.safetensors but pytorch_model.bin, a format that can run code"
    ):
        load_reward([str(broken)])


def test_an_empty_folder(tmp_path):
    with pytest.raises(RewardError, match=r"no config.json in"):
        load_reward([str(tmp_path)])


def test_a_folder_without_weights(broken):
    (broken / "model.safetensors").unlink()
    with pytest.raises(RewardError, match=r"has no model.safetensors: convert"):
        load_reward([str(broken)])


def test_code_of_its_own_is_never_run(broken):
    edit_config(broken, auto_map={"AutoModelForSequenceClassification": "evil.Model"})
    (broken / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(RewardError, match="code of its own"):
        load_reward([str(broken)])


def test_an_adapter_is_refused(broken):
    (broken / "adapter_config.json").write_text("{}")
    with pytest.raises(RewardError, match="is an adapter; merge it"):
        load_reward([str(broken)])


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/x.safetensors", "weights.bin"])
def test_a_shard_outside_the_folder_is_refused(broken, shard):
    index = {"weight_map": {"classifier.bias": shard}}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(RewardError, match="do not use this model"):
        load_reward([str(broken)])


def test_a_missing_shard(broken):
    index = {"weight_map": {"classifier.bias": "model-00001.safetensors"}}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(RewardError, match=r"the shard 'model-00001.safetensors' is missing"):
        load_reward([str(broken)])


def test_an_index_without_a_map(broken):
    (broken / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(RewardError, match="has no weight_map"):
        load_reward([str(broken)])


@pytest.mark.parametrize(("text", "message"), [("{", "cannot be read"), ("[]", "is not a JSON object")])
def test_a_config_that_is_no_config(broken, text, message):
    (broken / "config.json").write_text(text)
    with pytest.raises(RewardError, match=message):
        load_reward([str(broken)])


def test_an_unknown_architecture(broken):
    edit_config(broken, model_type="no-such-model")
    with pytest.raises(RewardError, match="does not open as a sequence-classification model"):
        load_reward([str(broken)])


def test_a_truncated_file(broken):
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(RewardError, match="does not open as a sequence-classification model"):
        load_reward([str(broken)])


def test_a_language_model_is_no_reward_model(tmp_path):
    folder = make_model("llama", tmp_path / "lm")
    with pytest.raises(RewardError, match=r"lacks the tensor 'score.weight' \(1 in all\): it is not a"):
        load_reward([f"{folder}#0"])


def test_nan_in_the_weights_is_found_at_once(broken):
    weights = load_file(broken / "model.safetensors")
    weights["classifier.weight"][0, 3] = torch.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RewardError, match=r"NaN or infinity in 'classifier.weight'"):
        load_reward([str(broken)])
