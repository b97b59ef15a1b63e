"""What `split` asks of networks: the one of `partition`, and others like it that were trained without some samples, or on all."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from meca.method.clusters import Asked, Pairs, changed_pairs
from meca.method.enhance import EnhanceParams, two_outputs
from meca.method.second_look import SecondLookParams
from meca.method.transfer import flip_rate, median_flip_rate, target_share, trigger_estimate
from meca.models import Network, build
from meca.training.engine import Data, Session, features, predict, side_by_side
from meca.training.trainer import Recipe

__all__ = ["Networks", "Trainings"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Say = Callable[[str, int, int, str], None]  # what is going on, how many are done, of how many, a note


@dataclasses.dataclass(frozen=True)
class Trainings:
    """How the networks are trained, and what they are asked."""

    early: Recipe  # without some samples: as `partition`
    enhance: EnhanceParams  # the ends again
    second_look: SecondLookParams  # on the trusted part
    full: Recipe  # on everything: as `train_clean`
    end: float  # share of a class at the end of its margins that is asked about alone
    probe: int  # images of other classes that are tried


class Networks:
    """The answers of networks to the questions of both looks. Trained networks are not kept, but for the one that was trained on everything."""

    def __init__(self, session: Session, network: Network, data: Data, how: Trainings, say: Say) -> None:
        self.session, self.data, self.how, self.say = session, data, how, say
        self.network, self.model = network, network.model
        self.classes, self.device = len(network.description.class_names), session.device.name
        self.seconds = 0.0  # that were spent on training
        self.learnt: nn.Module | None = None  # `everything`, once it is trained
        # By class: images of others, the share of them that is seen as it without a difference, and the mean of all others.
        self.tried: dict[int, tuple[Tensor, float, Tensor]] = {}

    @contextlib.contextmanager
    def _timed(self) -> Generator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - begun

    def _fresh(self, *keys: int | str) -> nn.Module:
        return build(self.network.description, self.session.draws(*keys)).to(self.device)

    def _mean(self, rows: Tensor) -> Tensor:
        return self.data.images[rows].float().mean(0) / 255

    def flip_rate(self, label: int, suspects: Ints, rest: Ints) -> float:
        """Return the share of images of other classes that the difference of two parts flips to the class, 0 where content explains it."""
        if len(suspects) == 0 or len(rest) == 0:
            return 0.0
        if label not in self.tried:
            others = torch.nonzero(self.data.labels != label)[:, 0]
            order = torch.randperm(len(others), generator=self.session.draws("split", label))
            images = self.data.images[others[order[: self.how.probe].to(others.device)]]
            self.tried[label] = images, target_share(self.model, images, label), self._mean(others)
        tried, without, elsewhere = self.tried[label]
        first, second = (self._mean(torch.from_numpy(rows).to(self.device)) for rows in (suspects, rest))
        return flip_rate(self.model, tried, first - second, second - elsewhere, label, without)

    def unseen(self, left_out: list[Bools]) -> list[Ints]:
        """Return what networks that were trained without these samples see in all, int64 [n] each."""

        def look(number: int, without: Bools) -> Ints:
            kept = torch.from_numpy(~without).to(self.device)
            if int(kept.sum()) < 2:  # nothing to learn from: it sees nothing foreign
                return self.data.labels.cpu().numpy()
            model = self.session.train(self._fresh("split", "init"), self.data, self.how.early, f"split {number}", kept)
            return predict(model, self.data.images).argmax(1).cpu().numpy()

        with self._timed():
            return side_by_side([partial(look, *job) for job in enumerate(left_out)], self.session.device)

    def rescore(self, ranks: Floats) -> Floats:
        """Return the margins of all samples of `enhance` run once more, with the ends as suspects, float64 [n]."""
        params = dataclasses.replace(self.how.enhance, core=self.how.end)
        order = torch.from_numpy(ranks.astype(np.float32)).to(self.device)

        def note(number: int, loss: float, accuracy: float) -> None:
            self.say("split: the ends again", number, 2 * params.rounds, f"loss {loss:.3f}")

        with self._timed():
            result = two_outputs(dataclasses.replace(self.session, note=note), self.network, self.data, order, params, "again")
        return result.margin.double().cpu().numpy()

    def fit(self, number: int, keep: Bools) -> Floats:
        """Return the probabilities of all samples by a network that was trained on some, float64 [n classes]."""
        params = self.how.second_look
        self.say("split: second look", number + 1, params.rounds, f"{int(keep.sum())} samples")
        model, kept = self._fresh("second look", number), torch.from_numpy(keep).to(self.device)
        if int(kept.sum()) >= 2:
            with self._timed():
                self.session.train(model, self.data, params.recipe, f"second look {number}", kept)
        return predict(model.eval(), self.data.images).double().softmax(1).cpu().numpy()

    def common_flip_rates(self, suspects: Bools, trusted: Bools, content: Ints) -> Floats:
        """Return per class the flip rate of the common feature of its suspects, in a network trained on everything, float64 [classes]."""
        rates, images, labels = np.zeros(self.classes), self.data.images, self.data.labels
        if len(suspects) < 2:
            return rates
        model = self.everything
        flagged, clean, seen = (torch.from_numpy(values).to(self.device) for values in (suspects, trusted, content))
        for c in range(self.classes):
            mine, alike, others = flagged & (labels == c), clean & (labels == c), torch.nonzero(clean & (labels != c))[:, 0]
            if not bool(mine.any()) or not bool(alike.any()) or len(others) == 0:
                continue
            # The keys of draws keep the words that they had first: with others, other images would be drawn.
            order = torch.randperm(len(others), generator=self.session.draws("second look", "pictures", c))
            asked = others[order[: self.how.probe].to(others.device)]
            shared = trigger_estimate(images, mine, clean, seen, self.classes)
            looks = self._mean(torch.nonzero(alike)[:, 0]) - self._mean(others)
            rates[c] = median_flip_rate(model, images[asked], labels[asked], shared, looks, c)
        return rates

    def pair(self) -> Pairs:
        """Return the smaller cluster of each class in the features of a network trained on everything, and its flip rate."""
        model, params = self.everything, self.how.second_look
        values = features(model, self.data.images).double().cpu().numpy()
        asked = Asked(params.cluster, params.min_suspects, self.how.probe)
        return changed_pairs(model, self.data, values, self.classes, asked, self.session.seed)

    @cached_property
    def everything(self) -> nn.Module:
        """A network that was trained fully on everything: it has learnt the trigger, however rare."""
        self.say("split: second look", 1, 1, "all samples")
        model = self._fresh("second look", "everything")
        with self._timed():
            self.learnt = self.session.train(model, self.data, self.how.full, "second look everything")
        return self.learnt
