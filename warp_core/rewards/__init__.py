"""What the policy is rewarded for: models, formulas and your own functions, added up and checked.

base.py         the Reward protocol and the checked call
builtin.py      formulas on the text
classifier.py   sequence-classification models, the bundled sentiment model among them
folders.py      what a model folder must look like before it is opened
function.py     python:module.function
specs.py        NAME:WEIGHT, load_reward, RewardSum
"""

from warp_core.rewards.base import Reward, RewardBatch, RewardScores
from warp_core.rewards.specs import RewardSpec, RewardSum, known_rewards, load_reward, parse_spec

__all__ = [
    "Reward",
    "RewardBatch",
    "RewardScores",
    "RewardSpec",
    "RewardSum",
    "known_rewards",
    "load_reward",
    "parse_spec",
]
