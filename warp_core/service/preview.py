"""A preview: one prompt, the same random numbers, several models; texts token by token, then rewards and KLs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from warp_core.errors import DivergedError
from warp_core.evaluation.evaluate import Subject, completion_kl
from warp_core.policy.model import Policy
from warp_core.policy.prompts import encode_prompts
from warp_core.policy.room import require_positions
from warp_core.policy.sampling import Completions, row_seed
from warp_core.rewards import RewardBatch, RewardSum
from warp_core.service.decoding import TokenStream
from warp_core.service.jobs import Context
from warp_core.service.protocol import Completion, Pane, PaneState, PreviewRequest
from warp_core.service.seats import Blend, Seat
from warp_core.weights import Checkpoint

__all__ = ["Board", "Sampler", "warm_up"]

IN_TURN = "not enough memory for all models at once: the panes take turns"


class Board:
    """The panes of a preview as they are seen; every change is shown at once."""

    def __init__(self, request: PreviewRequest, context: Context) -> None:
        self._request, self._context = request, context
        self._states: list[PaneState] = ["waiting"] * len(request.panes)
        self._completions: list[tuple[Completion, ...]] = [()] * len(request.panes)
        self._show()

    def set_state(self, panes: Sequence[int], state: PaneState) -> None:
        """Say what some panes are doing."""
        for pane in panes:
            self._states[pane] = state
        self._show()

    def write(self, seat: Seat, stream: TokenStream) -> None:
        """Show what a stream has drawn."""
        completions = [
            Completion(text=text, num_tokens=num, done=ended)
            for text, num, ended in zip(stream.texts, stream.num_tokens, stream.has_ended, strict=True)
        ]
        copies = self._request.num_completions
        for number, pane in enumerate(seat.panes):
            self._completions[pane] = tuple(completions[number * copies : (number + 1) * copies])
        self._show()

    def add(self, pane: int, scores: Sequence[dict[str, object]]) -> None:
        """Add fields to the completions of a pane."""
        pairs = zip(self._completions[pane], scores, strict=True)
        self._completions[pane] = tuple(one.model_copy(update=fields) for one, fields in pairs)
        self._show()

    def completions(self, pane: int) -> tuple[Completion, ...]:
        """The completions of a pane."""
        return self._completions[pane]

    def _show(self) -> None:
        shown = zip(self._request.panes, self._states, self._completions, strict=True)
        self._context.show(
            [Pane(id=one.id, place=one.place, state=state, completions=texts) for one, state, texts in shown]
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampler:
    """Samples the panes of one request on the seats they were given.

    Attributes:
        request: what is asked.
        context: of the job.
        board: what is shown.
        blends: the model of each pane.
        seats: who computes them.
        together: whether the seats can hold their models all at once.
    """

    request: PreviewRequest
    context: Context
    board: Board
    blends: Sequence[Blend]
    seats: Sequence[Seat]
    together: bool

    def run(self, sft: Checkpoint, reward: Callable[[], RewardSum]) -> None:
        """Sample all panes and score them where that is asked for.

        Raises:
            ConfigError: prompt and completion are longer than the model's context.
            PromptError: the prompt has no token, or the model no chat template.
            RewardError: a reward is unknown or misbehaved.
            DivergedError: a KL is not finite.
        """
        self._require_room(sft)
        everyone = range(len(self.blends))
        if not self.together:
            self.context.say(IN_TURN)
        groups = [list(self.seats)] if self.together else [[seat] for seat in self.seats]
        streams = [stream for group in groups for stream in self._sample(group)]
        self.context.mark("sampled")
        if self.request.score:
            self.board.set_state(everyone, "scoring")
            self._rewards(reward())
            for seat, stream in zip(self.seats, streams, strict=True):
                self._kls(seat, stream.completions())
            self.context.mark("scored")
        self.board.set_state(everyone, "done")

    def _require_room(self, sft: Checkpoint) -> None:
        prompt = encode_prompts(
            [self.request.prompt],
            self.seats[0].policy.tokenizer,
            chat_template=self.request.chat_template,
            device=torch.device("cpu"),
        )
        require_positions(sft, num_prompt=prompt.ids_BP.shape[1], max_new_tokens=self.request.max_new_tokens)

    def _sample(self, seats: Sequence[Seat]) -> list[TokenStream]:
        """Put the weights of some seats in place and let them draw a token each in turn."""
        panes = [pane for seat in seats for pane in seat.panes]
        self.board.set_state(panes, "merging")
        for seat in seats:
            self.context.checkpoint()
            seat.begin()
        self.context.mark("merged")
        self.board.set_state(panes, "sampling")
        streams = [self._stream(seat) for seat in seats]
        while not all(stream.is_complete for stream in streams):
            for seat, stream in zip(seats, streams, strict=True):
                if not stream.is_complete:
                    self.context.checkpoint()
                    stream.step()
                    self.board.write(seat, stream)
            self.context.mark("first_token")
        return streams

    def _stream(self, seat: Seat) -> TokenStream:
        policy, request = seat.policy, self.request
        prompt = encode_prompts(
            [request.prompt], policy.tokenizer, chat_template=request.chat_template, device=policy.device
        )
        return TokenStream(
            policy,
            prompt.repeat(len(seat.panes)),
            seeds=[row_seed("preview", request.seed, number) for number in range(request.num_completions)],
            max_new_tokens=request.max_new_tokens,
            temperature=request.temperature,
            within=seat.within,
        )

    def _rewards(self, reward: RewardSum) -> None:
        self.context.checkpoint()
        rows = [(pane, one) for pane in range(len(self.blends)) for one in self.board.completions(pane)]
        scores = reward(
            RewardBatch(
                prompts=(self.request.prompt,) * len(rows),
                completions=tuple(one.text for _, one in rows),
                num_tokens=tuple(one.num_tokens for _, one in rows),
            )
        )
        found: dict[int, list[dict[str, object]]] = {pane: [] for pane, _ in rows}
        for row, (pane, _) in enumerate(rows):
            parts = {name: float(part_B[row]) for name, part_B in scores.parts.items()}
            found[pane].append({"reward": float(scores.total_B[row]), "rewards": parts})
        for pane, fields in found.items():
            self.board.add(pane, fields)

    def _kls(self, seat: Seat, completions: Completions) -> None:
        """The exact KL of each completion of a seat to the SFT policy; the SFT policy is at none from itself."""
        copies = self.request.num_completions
        moved = [pane for pane in seat.panes if not self.blends[pane].is_sft]
        kl_B = torch.zeros(len(completions.texts), dtype=torch.float64)
        if moved:
            kl_B = self._kl_of(seat, completions, copies)
        for number, pane in enumerate(seat.panes):
            values = kl_B[number * copies : (number + 1) * copies] if pane in moved else torch.zeros(copies)
            if not torch.isfinite(values).all():
                label = self.request.panes[pane].id
                raise DivergedError(f"the KL of pane {label!r} is not a number: the weights of its model are broken")
            self.board.add(pane, [{"kl": float(value)} for value in values])

    def _kl_of(self, seat: Seat, completions: Completions, copies: int) -> torch.Tensor:
        subject = Subject(policy=seat.policy, reference=seat.reference, anchor=seat.anchor)
        temperature, between = self.request.temperature, self.context.checkpoint
        if completions.logps_BTV is not None:
            return completion_kl(subject, completions, temperature=temperature, between=between)
        # Too many to be kept: they are computed again, by each model for its own rows.
        seat.begin()
        parts = []
        for number in range(len(seat.panes)):
            rows = completions.rows(number * copies, (number + 1) * copies)
            with seat.alone(number)():
                parts.append(completion_kl(subject, rows, temperature=temperature, between=between))
        return torch.cat(parts)


def warm_up(policy: Policy, seat: Seat) -> None:
    """Draw one token, so that what libraries make on first use is made."""
    prompt = encode_prompts(["The"], policy.tokenizer, chat_template=False, device=policy.device)
    stream = TokenStream(
        policy, prompt.repeat(len(seat.panes)), seeds=[0], max_new_tokens=2, temperature=1.0, within=seat.within
    )
    while not stream.is_complete:
        stream.step()
