"""Many profiles tuned together: one pass through the frozen PLM for all of their rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.lanes import lanes_of
from xpeft_server.model.plm import Plm
from xpeft_server.model.pooling import pool

from .errors import Unservable
from .evaluation import Evaluator, Scored
from .forward import hidden_states
from .graphed_step import GraphedStep
from .head_fit import LIKELY_SHIFT, bias_penalties, choose_penalties, fit_linear_heads
from .labelled_texts import LabelledTexts
from .linear_head import HeadRows, LinearHead
from .packed_step import PackedStep
from .profile_stack import Learned
from .rotated_rows import rotate
from .row_batch import Pick, pack_rows, within
from .settings import TuningSettings
from .step_losses import StepLosses
from .train_state import TrainState
from .trainee import HeadPenalty, Trainee, TraineeBatch, temperatures

_HEAD_WEIGHT, _HEAD_BIAS = map(Learned._fields.index, ("head_weight", "head_bias"))


class Cohort:
    """P places over one PLM and one bank. Profiles in it do not influence each other beyond rounding.

    Args:
        plm: as `load_plm` makes it.
        bank: a bank of that model; frozen.
        settings: of all profiles.
        places: P.
        classes: C, labels of the widest head that will come.
        completes: whether prompts are completed, without a head; else pooled texts are labelled.
        score_held_out: whether every epoch is scored on the held-out rows where no dev rows choose one (a pass each).
        placed: whether steps come in few shapes, and nothing waits for them; None: on a GPU, where each is a graph.
    """

    def __init__(
        self,
        plm: Plm,
        bank: Bank,
        settings: TuningSettings,
        *,
        places: int,
        classes: int,
        completes: bool = False,
        score_held_out: bool = False,
        placed: bool | None = None,
    ) -> None:
        self._plm = plm
        self._bank = bank
        self._settings = settings
        self._score_held_out = score_held_out
        self._places = places
        lanes = lanes_of(plm.device)
        placed = lanes.asynchronous if placed is None else placed
        self._state = TrainState.of(plm, bank, settings, places=places + placed, classes=classes, completes=completes)
        self._stack = self._state.stack
        self._step = GraphedStep(self._state, lanes, padding_place=places) if placed else PackedStep(self._state)
        self.evaluator = Evaluator(
            plm, bank, slots=places, classes=classes, tokens=settings.batch_tokens, completes=completes
        )
        self._free = list(range(places))[::-1]
        self.trainees: list[Trainee] = []

    @property
    def free(self) -> int:
        """Free places."""
        return len(self._free)

    def admit(self, trainees: Sequence[Trainee]) -> None:
        """Give each a place, a fresh profile and a head to start with; at most as many as there are free places."""
        for trainee in trainees:
            trainee.place = self._free.pop()
            self._stack.begin(trainee.place, seed=trainee.settings.seed)
            self._state.optimizer.reset(trainee.place, solved=self._solved(trainee))
        if self._state.vocabulary is None:
            self._begin_heads(trainees)
        self.trainees += trainees
        if self._settings.stop_on is not None:
            self._offer(trainees)  # the start is a candidate too

    @property
    def padding(self) -> float:
        """Share of padding tokens in the steps."""
        return self._step.padding

    def step(self) -> list[Trainee]:
        """One update of every trainee, by rows of its own.

        Returns: the trainees that are done and leave; one whose last epoch left no profile has a failure.
        """
        batches = [TraineeBatch(each, each.next_rows()) for each in self.trainees]
        if self._settings.gumbel:
            for each in self.trainees:
                each.draw_noise(self._stack.learned.logits.shape[1:])
        losses = torch.zeros(self._places, device=self._plm.device)
        self._step.step(batches, losses)
        step_losses = StepLosses(losses)
        for each in self.trainees:
            each.stepped(step_losses[each.place])
        return self._leave()

    def _leave(self) -> list[Trainee]:
        """After a step: offer the profiles of epochs that ended, and release the places of trainees that are done."""
        ended = [each for each in self.trainees if each.ends_epoch]
        servable = self._are_servable([each.place for each in ended])
        self._offer([each for each, fits in zip(ended, servable, strict=True) if not fits or self._is_wanted(each)])
        done = [each for each in ended if each.finished]
        self.trainees = [each for each in self.trainees if each not in done]
        self._free += [each.place for each in done]
        return done

    def _are_servable(self, places: Sequence[int]) -> list[bool]:
        """Whether profiles can be made of them. Graphed steps take it for granted until an epoch is scored or is the
        last: the check would wait for the device."""
        return [True] * len(places) if isinstance(self._step, GraphedStep) else self._stack.fit_float16(places)

    def _is_wanted(self, trainee: Trainee) -> bool:
        """Whether the epoch's profile is scored or may be kept; the first one shows if any can be made at all."""
        last = trainee.epoch == trainee.settings.epochs
        return last or trainee.best.profile is None or len(self._scored_texts(trainee)) > 0

    def _offer(self, trainees: Sequence[Trainee]) -> None:
        """Offer each one's profile as it is now, and its score on the texts that are scored, to its `BestEpoch`."""
        seen: list[tuple[Trainee, Scored]] = []
        for trainee in trainees:
            try:
                profile = self._stack.profile(trainee.place, trainee.labels, trainee.temperature)
            except Unservable as failure:
                trainee.failure = None if trainee.best.end() else failure
            else:
                seen.append((trainee, Scored(profile, self._scored_texts(trainee))))
        scores = iter(self.evaluator.scores([offered for _, offered in seen if len(offered.texts)]))
        for trainee, offered in seen:
            trainee.score = next(scores) if len(offered.texts) else None
            trainee.best.offer(trainee.epochs_done, offered.profile, trainee.score)

    def _scored_texts(self, trainee: Trainee) -> LabelledTexts:
        """Dev rows where they choose; else held-out rows, where that costs little."""
        few = len(trainee.held_out) <= len(trainee.train)
        return trainee.held_out if self._settings.stop_on is None and self._score_held_out and few else trainee.dev

    @torch.no_grad()
    def features(self, texts: Sequence[LabelledTexts], trainees: Sequence[Trainee] | None = None) -> list[Tensor]:
        """``[Q, H]`` of each, packed together; under the current masks of one trainee each, or of the bare PLM."""
        device, slots = self._plm.device, None
        if trainees is not None:
            here = torch.tensor([each.place for each in trainees], device=device)
            learned = self._stack.learned.at(here)
            slots = self._stack.adapters(learned, self._state.bank_parts, temperatures(trainees, device))
        found = [torch.empty(len(each), self._bank.hidden, device=device) for each in texts]
        picks = [Pick(slot, each, each.by_length()) for slot, each in enumerate(texts)]
        for run in within(picks, self._settings.batch_tokens):
            chosen = [pick.slot for pick in run]
            batch = pack_rows(self._plm, [pick._replace(slot=slot) for slot, pick in enumerate(run)])
            part = None if slots is None else slots[:, chosen]
            hidden = hidden_states(self._plm, batch, part, self._stack.form)
            pooled = pool(hidden, batch.packed, self._bank.pooling)
            rows = torch.empty_like(pooled).index_copy_(0, batch.rows, pooled)
            for pick, features in zip(run, torch.split(rows, [len(pick.places) for pick in run]), strict=True):
                found[pick.slot][torch.from_numpy(pick.places).to(device)] = features
        return found

    def fitted_heads(
        self, trainees: Sequence[Trainee], features: Sequence[Tensor], drawn_to: Sequence[LinearHead]
    ) -> list[tuple[LinearHead, HeadPenalty]]:
        """Heads fitted to the train rows' features, and their penalties per row.

        Beside a shared head, labels' biases are drawn to its, too.
        """
        shared = self._settings.shared_head is not None
        rows = rotate(
            [
                HeadRows(found, each.train.targets, centre, each.row_weights, shared and len(each.labels) > 1)
                for each, found, centre in zip(trainees, features, drawn_to, strict=True)
            ]
        )
        penalty = self._settings.head_penalty
        if penalty is None:
            shift = LIKELY_SHIFT if shared else None
            penalties = choose_penalties(rows, seeds=[self._settings.seed] * len(trainees), likely_shift=shift)
        else:
            penalties = [penalty] * len(trainees)
        heads = fit_linear_heads(rows, penalties=penalties)
        both = zip(trainees, penalties, bias_penalties(rows, penalties), strict=True)
        shares = [HeadPenalty(weight / len(each.train), bias / len(each.train)) for each, weight, bias in both]
        return list(zip(heads, shares, strict=True))

    def _solved(self, trainee: Trainee) -> tuple[int, ...]:
        """Tensors that start at their optimum: the head, if the first step takes all rows that it was solved for."""
        alike = self._state.own_head and trainee.steps == 1 and not self._settings.gumbel
        return (_HEAD_WEIGHT, _HEAD_BIAS) if alike else ()

    def _begin_heads(self, trainees: Sequence[Trainee]) -> None:
        starts = drawn_to = [self._drawn_to(each) for each in trainees]
        if self._state.own_head and trainees:
            features = self.features([each.train for each in trainees], trainees)
            fitted = self.fitted_heads(trainees, features, drawn_to)
            starts = [head for head, _ in fitted]
            for trainee, (_, penalty) in zip(trainees, fitted, strict=True):
                trainee.penalty = penalty
        for trainee, centre, start in zip(trainees, drawn_to, starts, strict=True):
            self._stack.begin_head(trainee.place, centre, start)

    def _drawn_to(self, trainee: Trainee) -> LinearHead:
        if self._settings.shared_head is None:
            return LinearHead.zero(len(trainee.labels), self._bank.hidden)
        shared = self._bank.heads[self._settings.shared_head]
        return LinearHead(shared.weight.float(), shared.bias.float())
