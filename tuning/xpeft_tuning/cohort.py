"""Many profiles tuned together: one pass through the frozen PLM for the rows of all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xpeft_server.model.bank import Bank
from xpeft_server.model.plm import Plm
from xpeft_server.model.pooling import pool

from .bank_parts import BankParts
from .errors import Unservable
from .evaluation import Evaluator, Score, Scored
from .forward import hidden_states
from .labelled_texts import LabelledTexts
from .linear_head import LinearHead, choose_penalty, fit_linear_head
from .objective import completion_losses, label_losses
from .profile_stack import Learned, ProfileStack
from .row_adam import RowAdam
from .row_batch import Pick, pack_rows, within
from .settings import TuningSettings
from .trainee import Trainee

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
        watch: whether every epoch is scored on held-out rows where no dev rows choose (costs a pass over them).
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
        watch: bool = False,
    ) -> None:
        self._plm = plm
        self._bank = bank
        self._settings = settings
        self._watch = watch
        self._vocabulary = plm.vocabulary_head if completes else None
        self._own_head = settings.has_own_head and not completes
        self._parts = BankParts.of(bank, plm.device)
        self._stack = ProfileStack(bank, settings, places=places, classes=classes, device=plm.device)
        rates = [settings.lr_masks, settings.lr_norm, settings.lr_norm, settings.lr_head, settings.lr_head]
        if not self._stack.form.layer_norm:
            rates[1:3] = 0.0, 0.0
        if not self._own_head:
            rates[3:] = 0.0, 0.0
        self._optimizer = RowAdam(self._stack.learned, rates)
        self._evaluator = Evaluator(
            plm, bank, slots=places, classes=classes, tokens=settings.batch_tokens, completes=completes
        )
        self._free = list(range(places))[::-1]
        self.trainees: list[Trainee] = []

    @property
    def free(self) -> int:
        """Places that nobody has."""
        return len(self._free)

    def admit(self, trainees: Sequence[Trainee]) -> None:
        """Give each a place, a fresh profile and a head to start with; at most as many as there are free places."""
        for trainee in trainees:
            trainee.place = self._free.pop()
            self._stack.begin(trainee.place, seed=trainee.settings.seed)
            self._optimizer.begin(trainee.place, solved=self._solved(trainee))
        if self._vocabulary is None:
            self._begin_heads(trainees)
        self.trainees += trainees
        if self._settings.stop_on is not None:
            self._offer(trainees)  # the start is a candidate too

    def step(self) -> list[Trainee]:
        """One update of every trainee by rows of its own; those that are done leave, as they were at their best.

        So do those whose last epoch left no profile: they have a failure.
        """
        picks = [Pick(slot, each.train, each.next_rows()) for slot, each in enumerate(self.trainees)]
        places = torch.tensor([each.place for each in self.trainees], device=self._plm.device)
        leaves = self._stack.leaves(places)
        losses = torch.zeros(len(picks), device=self._plm.device)
        rows = [len(pick.places) for pick in picks]
        if self._settings.gumbel:
            for each in self.trainees:
                each.draw_noise(leaves.logits.shape[1:])
        # Labels and numbers have losses of their own.
        for kind in dict.fromkeys(pick.texts.targets.dtype for pick in picks):
            alike = [pick for pick in picks if pick.texts.targets.dtype == kind]
            for run in within(alike, self._settings.batch_tokens):
                self._pass(run, rows, places, leaves, losses)
        if self._own_head:
            penalties = torch.tensor([each.penalty for each in self.trainees], device=self._plm.device)
            torch.autograd.backward((penalties * leaves.head_weight.square().sum(dim=(1, 2)) / 2).sum())
        shares = torch.tensor([1 - each.share_done for each in self.trainees], device=self._plm.device)
        self._optimizer.step(places, [each.grad for each in leaves], shares)
        for trainee, loss in zip(self.trainees, losses.tolist(), strict=True):
            trainee.stepped(loss)
        return self._leave()

    def _pass(
        self, picks: Sequence[Pick], rows: Sequence[int], places: Tensor, leaves: Learned, losses: Tensor
    ) -> None:
        """Forward and backward of some rows; gradients are added to ``leaves``, mean losses to ``losses``.

        Args: rows: of each trainee's whole step.
        """
        slots = sorted({pick.slot for pick in picks})
        trainees = [self.trainees[slot] for slot in slots]
        here = torch.tensor(slots, device=places.device)
        part = Learned(*(each.index_select(0, here) for each in leaves))
        batch = pack_rows(self._plm, [pick._replace(slot=slots.index(pick.slot)) for pick in picks])
        hidden = hidden_states(self._plm, batch, self._adapters(part, trainees, noise=True), self._stack.form)
        if self._vocabulary is not None:
            each = completion_losses(hidden, batch.packed, batch.targets, self._vocabulary)
        else:
            weight, bias = self._stack.head(places[here], part)
            pooled = pool(hidden, batch.packed, self._bank.pooling)
            logits = torch.einsum("qh,qch->qc", pooled, weight[batch.slots]) + bias[batch.slots]
            each = label_losses(logits, batch.targets)
        mean = torch.tensor([1 / rows[slot] for slot in slots], device=places.device)[batch.slots]
        weights = torch.cat([self.trainees[pick.slot].row_weights[pick.places] for pick in picks])
        torch.autograd.backward((each * mean * weights.to(places.device)[batch.rows]).sum())
        losses.index_add_(0, here[batch.slots], each.detach() * mean)

    def _adapters(self, learned: Learned, trainees: Sequence[Trainee], *, noise: bool) -> Tensor:
        """``[L, P', D']`` slots of some trainees, as training sees them: at its temperature, with or without noise."""
        settings = self._settings
        logits = learned.logits
        temperature = torch.tensor([each.temperature for each in trainees], device=logits.device).view(-1, 1, 1, 1)
        if noise and settings.gumbel:
            logits = logits + settings.gumbel * torch.stack([each.noise for each in trainees]).to(logits)
        weights = self._stack.weights(logits, temperature)
        return self._stack.slot_rows(weights, learned, self._parts)

    def _leave(self) -> list[Trainee]:
        """After a step: look at whose epoch ended, and let go of who is done."""
        ended = [each for each in self.trainees if each.ends_epoch]
        fit = self._stack.fit_float16([each.place for each in ended])
        self._offer([each for each, fits in zip(ended, fit, strict=True) if not fits or self._is_looked_at(each)])
        done = [each for each in ended if each.finished]
        self.trainees = [each for each in self.trainees if each not in done]
        self._free += [each.place for each in done]
        return done

    def _is_looked_at(self, trainee: Trainee) -> bool:
        """Whether the epoch's profile is scored or maybe kept; the first one shows if any can be made at all."""
        last = trainee.epoch == trainee.settings.epochs
        return last or trainee.best.profile is None or len(self._watched(trainee)) > 0

    def _offer(self, trainees: Sequence[Trainee]) -> None:
        """Profiles as they are now, and their scores where anybody looks at them, to each one's choice of an epoch."""
        seen: list[tuple[Trainee, Scored]] = []
        for trainee in trainees:
            try:
                profile = self._stack.profile(trainee.place, trainee.labels, trainee.temperature)
            except Unservable as failure:
                trainee.failure = failure
            else:
                seen.append((trainee, Scored(profile, self._watched(trainee))))
        scores = iter(self._evaluator.scores([offered for _, offered in seen if len(offered.texts)]))
        for trainee, offered in seen:
            trainee.score = next(scores) if len(offered.texts) else None
            trainee.best.offer(trainee.epochs_done, offered.profile, trainee.score)

    def _watched(self, trainee: Trainee) -> LabelledTexts:
        """Dev rows where they choose; else held-out rows, where that costs little."""
        few = len(trainee.held_out) <= len(trainee.train)
        return trainee.held_out if self._settings.stop_on is None and self._watch and few else trainee.dev

    def scores(self, pairs: Sequence[Scored]) -> list[Score]:
        """Measured as they will be served."""
        return self._evaluator.scores(pairs)

    def features(self, trainee: Trainee | None, texts: LabelledTexts) -> Tensor:
        """``[Q, H]`` under the trainee's masks as they are now; of the bare PLM without one."""
        (found,) = self._features([texts], None if trainee is None else [trainee])
        return found

    @torch.no_grad()
    def _features(self, texts: Sequence[LabelledTexts], trainees: Sequence[Trainee] | None) -> list[Tensor]:
        """``[Q, H]`` of each, packed together; under the masks of the trainee in the same place, if there are any."""
        device, slots = self._plm.device, None
        if trainees is not None:
            here = torch.tensor([each.place for each in trainees], device=device)
            learned = Learned(*(each[here] for each in self._stack.learned))
            slots = self._adapters(learned, trainees, noise=False)
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

    def fitted_head(self, trainee: Trainee, features: Tensor, drawn_to: LinearHead) -> tuple[LinearHead, float]:
        """The head that suits the train rows' features best, and its penalty divided by their number."""
        targets, penalty = trainee.train.targets.to(features.device), self._settings.head_penalty
        if penalty is None:
            penalty = choose_penalty(features, targets, drawn_to, seed=self._settings.seed, weights=trainee.row_weights)
        head = fit_linear_head(features, targets, drawn_to, penalty=penalty, weights=trainee.row_weights)
        return head, penalty / len(targets)

    def _solved(self, trainee: Trainee) -> tuple[int, ...]:
        """Of what is learned: the head, if the first step takes all the rows that it is solved for, as they are."""
        alike = self._own_head and trainee.steps == 1 and not self._settings.gumbel
        return (_HEAD_WEIGHT, _HEAD_BIAS) if alike else ()

    def _begin_heads(self, trainees: Sequence[Trainee]) -> None:
        own = self._own_head and len(trainees) > 0
        features = self._features([each.train for each in trainees], trainees) if own else []
        for number, trainee in enumerate(trainees):
            start = drawn_to = self._drawn_to(trainee)
            if self._own_head:
                start, trainee.penalty = self.fitted_head(trainee, features[number], drawn_to)
            self._stack.begin_head(trainee.place, drawn_to, start)

    def _drawn_to(self, trainee: Trainee) -> LinearHead:
        if self._settings.shared_head is None:
            return LinearHead.zero(len(trainee.labels), self._bank.hidden)
        shared = self._bank.heads[self._settings.shared_head]
        return LinearHead(shared.weight.float(), shared.bias.float())
