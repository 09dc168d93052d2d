"""The pieces of scripts/train_reward_model.py, by hand; the training itself takes minutes and is not run here."""

import importlib.util
import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train_reward_model.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_reward_model", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_soft_loss(script):
    # p = 3/4, predicted exactly: the entropy of (3/4, 1/4)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    loss = script.soft_loss(torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([0.75]))
    assert loss.item() == pytest.approx(entropy, abs=1e-6)
    # p = 1/2 and a difference of 2: the mean of log(1 + e^2) and log(1 + e^2) - 2
    loss = script.soft_loss(torch.tensor([[0.0, 2.0]]), torch.tensor([0.5]))
    assert loss.item() == pytest.approx(math.log(1 + math.e**2) - 1.0, abs=1e-6)


def test_grades_keep_the_side_of_the_label_and_follow_the_words(script):
    texts = [("great", 1.0)] * 20 + [("awful", 0.0)] * 20 + [("fine", 1.0)] * 6 + [("fine", 0.0)] * 5
    phrases = [script.Example(text=text, target=target) for text, target in texts]
    tokenizer = script.train_tokenizer([text for text, _ in texts], vocab_size=100)
    graded = script.grade(phrases, tokenizer=tokenizer, settings=script.Settings())
    great, awful, fine, not_fine = (graded[i].target for i in (0, 20, 40, 46))
    # six of eleven "fine" are positive: q = 6/11 and 5/11 up to the penalty, on the ladder from 0.7 to 0.995
    assert fine == pytest.approx(0.7 + 0.295 * 6 / 11, abs=0.003)
    assert not_fine == pytest.approx(1.0 - (0.7 + 0.295 * 5 / 11), abs=0.003)
    assert awful < 0.02
    assert 0.98 < great < 0.995


def test_a_review_has_the_mean_target_and_its_opening_counts_for_nothing(script):
    phrases = [script.Example(text="good", target=0.9), script.Example(text="bad so bad", target=0.1)]
    seen = set()
    for seed in range(200):
        review = script.make_review(phrases, openings=["the film is"], opening_share=0.5, generator=random.Random(seed))
        good, bad = review.text.count("good"), 3 * review.text.count("bad so bad")
        assert review.target == pytest.approx((0.9 * good + 0.1 * bad) / (good + bad))
        seen.add(round(review.target, 3))
    assert {0.9, 0.1, 0.3} <= seen  # 0.3: one word of good, three of bad


def test_hidden_pieces_spare_the_special_tokens(script):
    ids_BT = torch.tensor([[2, 10, 11, 3, 0]])
    assert script.hide(ids_BT, share=1.0).tolist() == [[2, 4, 4, 3, 0]]
    assert script.hide(ids_BT, share=0.0).tolist() == [[2, 10, 11, 3, 0]]


def test_sentences_of_the_training_phrases_are_not_unseen(script):
    known = [script.Example(text="it 's a long and winding road .", target=1.0)]
    old = script.Example(text="It's a long and winding road", target=1.0)
    new = script.Example(text="nobody expected this short film to work", target=1.0)
    assert script.unseen([old, new], phrases=known) == [new]


def test_accuracy_is_of_signs(script):
    examples = [script.Example(text="", target=target) for target in (1.0, 0.0, 1.0, 0.0)]
    assert script.accuracy(np.array([0.1, -3.0, -0.1, -0.2]), examples) == 0.75
