"""What decides how a model is spoken to: end tokens and template are part of what a stored point is named by."""

import json

from tests.tiny import make_model
from warp_core.policy.speech import speech_id


def test_the_same_folder_says_the_same(tmp_path):
    one, two = (make_model("llama", tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 1)))
    assert speech_id(one) == speech_id(two), "weights do not count"
    assert len(speech_id(one)) == 16


def test_another_end_token_or_template_is_another_speech(tmp_path):
    folder = make_model("llama", tmp_path / "a")
    before = speech_id(folder)
    generation = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(generation | {"eos_token_id": [258, 10]}))
    ended = speech_id(folder)
    assert ended != before
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert speech_id(folder) not in (before, ended)
