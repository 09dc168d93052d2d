"""The words of the app, each in a sentence or two: the help page lists them, other pages show one as a tooltip."""

__all__ = ["GLOSSARY"]

GLOSSARY = {
    "policy": "A language model that is being trained, or was: given a prompt it samples a completion.",
    "SFT policy": (
        "The supervised fine-tuned model that everything starts from, theta_sft. Every KL in the app is to this one, "
        "so its own is 0."
    ),
    "init": "The model that the RL runs of an iteration start from; in iteration 1 the SFT policy.",
    "prompt, completion": "The text a model is given, and the text it samples to continue or answer it.",
    "reward": (
        "A number that says how good a completion is, from a reward model or a function; several can be added up with "
        "weights, and then each is a part of the reward."
    ),
    "KL": (
        "How far a policy is from the SFT policy: the mean over completions of the log-probability ratio, in nats per "
        "completion. `exact` sums over the whole vocabulary at each position, `mc` takes the sampled tokens only."
    ),
    "beta": "Weight of the KL to the anchor that is taken off the reward in RL; 0 is no anchor.",
    "anchor, mu": (
        "The model that RL is held close to. In WARP it follows the policy as an exponential moving average, with rate "
        "mu after every step; the usual choice is the SFT policy, which stays."
    ),
    "task vector": "What training changed: a policy's weights minus those of its init, delta = theta - theta_init.",
    "merge": "A model made from the weights of several policies, without training.",
    "SLERP": (
        "Spherical interpolation of task vectors, one angle per layer. The merge is as long as the policies' own task "
        "vectors, so it keeps what they learned together."
    ),
    "LERP": "The weighted mean of the policies. For nearly orthogonal task vectors it is shorter than they are.",
    "lambda, weights": (
        "How much each policy counts in the merge; they add up to 1. With two policies lambda is the weight of the "
        "second."
    ),
    "LITI, eta": (
        "Linear interpolation towards initialization: eta 0 is the SFT policy, eta 1 the merge, between them reward is "
        "traded for KL. Values above 1 extrapolate."
    ),
    "towards": (
        "From iteration 2 on LITI can start at the SFT policy, or at the init of that iteration (`init`); in "
        "iteration 1 they are the same."
    ),
    "iteration": (
        "One round of WARP: train M policies from an init, merge them, take the LITI point at a small eta as the next "
        "init."
    ),
    "run": "All I iterations with their M policies each, their settings, and every point measured, in one folder.",
    "point": "A model whose reward, KL, length and diversity were measured on the evaluation prompts.",
    "standard error": (
        "How far the mean over completions may be from the truth by chance: one standard error either way holds it two "
        "times in three. Completions of one prompt count as dependent."
    ),
    "front": "The points that no other point beats: more reward costs more KL there.",
    "dominated": "A point is dominated when another one measured alike has no more KL and no less reward.",
    "hypervolume": (
        "The area between the front and a reference point (a KL and a reward). One number for a whole front: larger is "
        "better, and only with the same reference."
    ),
    "prediction": (
        "An estimate of reward and KL between measured points, by kriging over the distance of models in weight space. "
        "It is drawn dashed and measured nothing; its error is found by leaving points out in turn."
    ),
    "budget": "The most KL you want to allow; eta is set to the largest one that is predicted to keep to it.",
    "pin": "A place that is kept: in the list, in the link, in the side panes, on the Compare page.",
    "reference": "What the differences on the card are to: the SFT policy, or a pin.",
    "diversity": "How unlike each other the completions of one prompt are, from 0 (all alike) to 1.",
    "length": "Tokens per completion, the end token included.",
    "LoRA adapter": (
        "Two small matrices per layer that hold what was trained. With A frozen the update is linear in B, and merges "
        "of adapters are exact."
    ),
    "vote": (
        "Which of two completions is better: much better 1.5, better 1, slightly better 0.5, tie 0. A preference score "
        "is the mean over votes."
    ),
    "judge": "A reward model that scores stored completions, beside the votes of people.",
}
"""Term: explanation, in plain text; terms that belong together share an entry."""
