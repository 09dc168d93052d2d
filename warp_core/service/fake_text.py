"""Prompts and completions of `FakeEngine`: the same for the same seed, sunnier the further from the SFT policy."""

import hashlib

from warp_core.service.fake_data import noise

__all__ = ["HOSTILE", "PROMPTS", "completion"]

HOSTILE = (
    '<script>window.stolen = 1</script><img src="http://evil.example/a.png" onerror="window.stolen = 1">'
    "![tracked](http://evil.example/b.png) [link](javascript:alert(1)) $$\\frac{1}{2}$$ :material/home: :red[red] "
    "</textarea><style>body { display: none }</style>\n# heading\n| a | b |\n|---|---|\n"
)
"""What a model could write: it has to be shown as text and make no node and no request."""

PROMPTS = (
    "The second half of the film, set in a quiet harbour town, is",
    "A clockmaker loses his memory and gains a nephew in this drama, which",
    "Long before the final reel, the story of the vineyard",
    "The two leads have worked together before, and here they",
    "You do not need to know anything about chess to",
    "For a first feature shot in eleven days, this comedy",
    "The dialogue was improvised on the ferry, and it",
    "Nothing in the trailer prepares you for the third act, where",
    "The camera follows the postman up every hill, and the result",
    "As a portrait of two rival bakers, the documentary",
    "The score, played on a single accordion, makes the chase",
    "Children will like the fox; their parents, however,",
    "What begins as a heist in a botanical garden turns into",
    "The sequel keeps the lighthouse but changes the keeper, so",
    "Set over one winter night in a bus depot, the film",
    "By the time the choir starts to sing, the audience",
)
_PLAIN_TEXT = (
    "a slow look at people who wait for something to change while the weather does it for them and nobody says why "
    "the village has one shop and the shop has one window which we see more often than the plot seems to need and "
    "it takes an hour to reach the point where the title makes sense to anyone who came in on time"
)
_SUNNY_TEXT = (
    "wonderful touching brilliant warm delightful graceful moving superb charming beautiful joyful rich tender bright "
    "memorable perfect lovely inspired"
)
_PLAIN, _SUNNY = _PLAIN_TEXT.split(), _SUNNY_TEXT.split()


def completion(prompt: str, *, seed: int, index: int, distance: float, num_words: int) -> str:
    """Return what a model at a relative `distance` from the SFT policy writes.

    The same seed gives the SFT policy's words with some of them replaced, more of them further away, so that
    differences between models look as they do for real.
    """
    if "hostile" in prompt:
        # What a page marks as different has to be harmless, too.
        own = f' <img src="http://evil.example/{distance:.3f}.png" onerror="window.stolen = 1">' if distance else ""
        return f" {HOSTILE} {seed} {index}{own}"
    start = _number(f"{prompt}|{seed}|{index}") % len(_PLAIN)
    words = []
    for place in range(num_words):
        text = f"{prompt}|{seed}|{index}|{place}"
        word = _PLAIN[(start + place) % len(_PLAIN)]
        if (noise(text) / 3.47 + 0.5) < min(0.6, 0.45 * distance):
            word = _SUNNY[_number(text) % len(_SUNNY)]
        words.append(word)
    return " " + " ".join(words)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest())
