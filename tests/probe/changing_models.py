"""Classifiers whose head changes, repeats, hides, splits or moves between passes: the table of `test_every_pass`.

A row builds a model and says what happens to it between passes. What each pass must give is computed by the row from
the model's own parts (``truth``: features g (N, n) and weight W (K, n) with logits = g Wᵀ + one constant row), on a
float64 twin that no probe has ever seen; nothing here knows how the probe works.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

from ccf_plugin import LinearHead

N, n, K = 24, 6, 4
Truth = tuple[Tensor, Tensor]
# What compute says of a pass whose values do not fit the head that was right before.
MISSED = r"off by|no longer"


def nothing(*_: Any) -> None:
    pass


def plain_call(model: nn.Module, x: Tensor) -> Any:
    return model(x)


@dataclass(frozen=True)
class Pass:
    """One pass of a row.

    Attributes:
        change: what happens to the model before it.
        after: what the host does to the model and the output between the pass and ``update``.
        call: how the host calls the model.
        refused: what ``update`` or ``compute`` must raise, whatever passes came before; None where the pass is right.
        after_others: the same, only where other passes were counted before it (K or n changed in between).
        asks: the pass is right, or else is refused with this; never silently wrong.
        asks_after_others: the same, only where other passes were counted before it.
        count: the batch's size.
        tolerance: on cosines; that of float32 where nothing else is said.
    """

    change: Callable[[Any], object] = nothing
    after: Callable[[Any, Any], object] = nothing
    call: Callable[[nn.Module, Tensor], Any] = plain_call
    refused: str | None = None
    after_others: str | None = None
    asks: str | None = None
    asks_after_others: str | None = None
    count: int = N
    tolerance: float = 2e-5


@dataclass(frozen=True)
class Row:
    build: Callable[[], nn.Module]
    passes: tuple[Pass, ...]
    options: dict[str, Any] = field(default_factory=dict)
    truth: Callable[[Any, Tensor], Truth] = lambda model, x: model.truth(x)
    answer: Callable[[Any], Tensor] = lambda output: output  # the logits in the model's output
    modes: tuple[str, ...] = ("grad", "no_grad")


ROWS: dict[str, Row] = {}


def row(name: str, *passes: Pass, build: Callable[[Any], nn.Module] | None = None, **more: Any) -> Callable[[Any], Any]:
    """Put the class (or ``build(it)``) into the table."""

    def add(made: Any) -> Any:
        assert name not in ROWS, name
        ROWS[name] = Row(made if build is None else (lambda: build(made)), passes or (Pass(), Pass()), **more)
        return made

    return add


# what happens between passes
def put(**values: Any) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        for name, value in values.items():
            setattr(model, name, value)

    return change


def evaluating(model: nn.Module) -> None:
    model.eval()


def training(model: nn.Module) -> None:
    model.train()


def redrawn(*names: str, seed: int = 5, scale: float = 1.0) -> Callable[[nn.Module], None]:
    """New values in place for these parameters or buffers, the same ones in float32 and float64."""

    def change(model: nn.Module) -> None:
        generator = torch.Generator().manual_seed(seed)
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name in names:
            tensors[name].data.copy_(scale * torch.randn(tensors[name].shape, generator=generator))

    return change


def trained(steps: int = 8, rate: float = 0.3) -> Callable[[nn.Module], None]:
    """Steps of SGD on passes that nobody counts."""

    def change(model: Any) -> None:
        generator = torch.Generator().manual_seed(9)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=rate)
        for _ in range(steps):
            x = torch.randn(N, 1, 4, 4, generator=generator).to(parameters[0].dtype)
            optimizer.zero_grad()
            F.cross_entropy(answer_of(model(x)), torch.arange(N) % K).backward()
            optimizer.step()

    return change


def stepped(model: Any) -> None:
    """A step of SGD along gradients of body and head, which run outside any pass of the model."""
    x = torch.randn(N, 1, 4, 4, generator=torch.Generator().manual_seed(9)).to(model.head.weight.dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=3.0)
    optimizer.zero_grad()
    F.cross_entropy(model.head(model.body(x)), torch.arange(N) % K).backward()
    optimizer.step()


def then(*changes: Callable[[Any], object]) -> Callable[[Any], None]:
    def change(model: nn.Module) -> None:
        for one in changes:
            one(model)

    return change


def answer_of(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def toggled(name: str, *values: Any, **more: Any) -> tuple[Pass, ...]:
    """A first pass as built, then one for each value of the attribute."""
    return (Pass(), *(Pass(put(**{name: value}), **more) for value in values))


def new_body(inputs: int = 16) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, n), nn.Tanh())


class Net(nn.Module):
    """g from a body, and one head; rows add what they need."""

    def __init__(self) -> None:
        super().__init__()
        self.body = new_body()
        self.head: Any = nn.Linear(n, K)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x))

    def truth(self, x: Tensor) -> Truth:
        return self.body(x), self.head.weight


# ---------------------------------------------------------------------------------------------------------------------
# several runs of the head in a pass


@row("PGD inside forward, switched on", *toggled("attacking", True, False))
class AttackedInside(Net):
    attacking = False

    def attacked(self, x: Tensor) -> Tensor:
        x = x.detach()
        for _ in range(3):
            with torch.enable_grad():
                free = x.clone().requires_grad_()
                (slope,) = torch.autograd.grad(self.head(self.body(free)).logsumexp(1).sum(), [free])
            x = x + 3 * slope
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.attacked(x) if self.attacking else x))

    def truth(self, x: Tensor) -> Truth:
        return self.body(self.attacked(x) if self.attacking else x), self.head.weight


@row("PGD inside forward, switched off after the first pass", Pass(put(attacking=True)), Pass(put(attacking=False)))
class AttackedFirst(AttackedInside):
    pass


@row("PGD inside forward, then a look at the clean images", *toggled("attacking", True, False, True))
class AttackedThenClean(AttackedInside):
    """The run that makes the output is not the last one."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        self.clean_confidence = self.head(self.body(x)).softmax(1).amax(1).mean()
        return logits


@row("the attack calls the model itself", *toggled("attacking", True, False))
class Recursive(AttackedInside):
    """self(x) within forward: every hook of the root runs again inside the pass."""

    def attacked(self, x: Tensor) -> Tensor:
        x, self.attacking = x.detach(), False
        for _ in range(2):
            with torch.enable_grad():
                free = x.clone().requires_grad_()
                (slope,) = torch.autograd.grad(self(free).logsumexp(1).sum(), [free])
            x = x + 3 * slope
        self.attacking = True
        return x


@row("clean and attacked in one tensor, half of it returned", *toggled("attacking", True, False, asks=r"rows"))
class AttackedTogether(AttackedInside):
    def forward(self, x: Tensor) -> Tensor:
        if not self.attacking:
            return self.head(self.body(x))
        return self.head(self.body(torch.cat([x, self.attacked(x)]))).chunk(2)[1]


@row("two views in train mode, one in eval mode", Pass(evaluating), Pass(training), Pass(evaluating))
@row("two views in train mode first", Pass(training), Pass(evaluating))
class TwoViews(Net):
    """One head on two tensors is one head on their mean."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.head(self.body(x))
        return (self.head(self.body(x)) + self.head(self.body(x.flip(3)))) / 2

    def truth(self, x: Tensor) -> Truth:
        g = self.body(x)
        return ((g + self.body(x.flip(3))) / 2 if self.training else g), self.head.weight


@row("a consistency run in train mode", Pass(evaluating), Pass(training), Pass(evaluating))
class Consistency(Net):
    """The second run only feeds a loss of the model's own."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(self.body(x))
        if self.training:
            self.consistency = (self.head(self.body(x + 0.5)).detach() - logits).square().mean()
        return logits


@row("MC dropout with another number of runs", *toggled("runs", 1, 5, 2))
@row("MC dropout with one run first", Pass(put(runs=1)), Pass(put(runs=4)), Pass(put(runs=1)))
class MonteCarlo(Net):
    runs = 3

    def views(self, x: Tensor) -> list[Tensor]:
        g = self.body(x)
        return [g * (torch.rand(g.shape) > 0.5).to(g.dtype) for _ in range(self.runs)]

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.head(g) for g in self.views(x)]).mean(0)

    def truth(self, x: Tensor) -> Truth:
        return torch.stack(self.views(x)).mean(0), self.head.weight


@row("multi-sample dropout between body and head", Pass(training), Pass(evaluating), Pass(training))
class MultiSample(Net):
    def views(self, x: Tensor) -> list[Tensor]:
        g = self.body(x)
        return [g * (torch.rand(g.shape) > 0.5).to(g.dtype) * 2 if self.training else g for _ in range(3)]

    def forward(self, x: Tensor) -> Tensor:
        return sum(self.head(g) for g in self.views(x)) / 3

    def truth(self, x: Tensor) -> Truth:
        return torch.stack(self.views(x)).mean(0), self.head.weight


@row("test-time flips, weighted, switched on", *toggled("weights", (0.75, 0.25), (0.5, 0.5), (1.0, 0.0), (1.0,)))
class Flips(Net):
    weights: tuple[float, ...] = (1.0,)

    def forward(self, x: Tensor) -> Tensor:
        return sum(w * self.head(self.body(x.flip(3) if i else x)) for i, w in enumerate(self.weights))

    def truth(self, x: Tensor) -> Truth:
        return sum(w * self.body(x.flip(3) if i else x) for i, w in enumerate(self.weights)), self.head.weight


@row("test-time views stacked in the batch", Pass(), Pass(put(views=2), asks="rows"), Pass(put(views=1)))
class StackedViews(Net):
    views = 1

    def forward(self, x: Tensor) -> Tensor:
        images = torch.cat([x, x.flip(3)][: self.views])
        return self.head(self.body(images)).view(self.views, len(x), K).mean(0)

    def truth(self, x: Tensor) -> Truth:
        images = torch.cat([x, x.flip(3)][: self.views])
        return self.body(images).view(self.views, len(x), n).mean(0), self.head.weight


@row(
    "test-time average of softmaxes", Pass(), Pass(put(views=2), refused=rf"probabilities|{MISSED}"), Pass(put(views=1))
)
class SoftmaxViews(Net):
    views = 1

    def forward(self, x: Tensor) -> Tensor:
        if self.views == 1:
            return self.head(self.body(x))
        return (self.head(self.body(x)).softmax(1) + self.head(self.body(x.flip(3))).softmax(1)) / 2


@row("chunks of a large batch", Pass(), Pass(put(chunks=2), asks="rows"), Pass(put(chunks=1)))
class Chunked(Net):
    chunks = 1

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.head(self.body(part)) for part in x.chunk(self.chunks)])


@row("a batch padded to a fixed size", Pass(), Pass(put(padded=True), count=17, asks="rows"), Pass(put(padded=False)))
class Padded(Net):
    padded = False

    def forward(self, x: Tensor) -> Tensor:
        count = len(x)
        if self.padded:
            x = torch.cat([x, x.new_zeros(N - count, *x.shape[1:])])
        return self.head(self.body(x))[:count]


@row(
    "a batch shuffled inside", Pass(), Pass(put(shuffled=True), asks=rf"rows|order|{MISSED}"), Pass(put(shuffled=False))
)
class Shuffled(Net):
    """As for batch statistics across devices: the head sees the rows in another order than the output has."""

    shuffled = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.shuffled:
            return self.head(self.body(x))
        order = torch.randperm(len(x))
        return self.head(self.body(x[order]))[order.argsort()]


# ---------------------------------------------------------------------------------------------------------------------
# several layers


@row("a learned mixture", *toggled("share", 0.95, 0.2))
@row("a mixture that shuts one member off", Pass(), Pass(put(share=1.0), asks_after_others="reset"))
class Mixture(Net):
    share = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.body2, self.head2 = new_body(), nn.Linear(n, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.share * self.head(self.body(x)) + (1 - self.share) * self.head2(self.body2(x))

    def truth(self, x: Tensor) -> Truth:
        weights = [self.share * self.head.weight, (1 - self.share) * self.head2.weight]
        return torch.cat([self.body(x), self.body2(x)], 1), torch.cat(weights, 1)


@row("a learned mixture whose weights are parameters", Pass(), Pass(redrawn("logit")), Pass(trained()))
class LearnedMixture(Mixture):
    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(()))

    @property
    def share(self) -> Tensor:
        return self.logit.sigmoid()


@row("two heads on one feature, averaged", Pass(training), Pass(evaluating), Pass(redrawn("head2.weight")))
@row(
    "two heads on one feature, one alone", Pass(), Pass(put(second=0.0)), Pass(put(second=-0.7)), Pass(put(second=None))
)
@row("a gate opens to a second head on the same feature", *toggled("second", 0.8), build=lambda made: gated(made()))
class Averaged(Net):
    """efficientformer's kind."""

    second: float | None = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.head2 = nn.Linear(n, K)

    def forward(self, x: Tensor) -> Tensor:
        g = self.body(x)
        return self.head(g) if self.second is None else 0.5 * self.head(g) + self.second * self.head2(g)

    def truth(self, x: Tensor) -> Truth:
        if self.second is None:
            return self.body(x), self.head.weight
        return self.body(x), 0.5 * self.head.weight + self.second * self.head2.weight


def gated(model: Averaged) -> Averaged:
    model.second = None
    return model


@row(
    "a gate opens to a head on another feature", Pass(), Pass(put(gate=0.6), after_others="reset"), Pass(put(gate=2.0))
)
class GatedElsewhere(Net):
    gate = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.body2, self.head2 = new_body(), nn.Linear(n, K)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(self.body(x))
        return logits + self.gate * self.head2(self.body2(x)) if self.gate else logits

    def truth(self, x: Tensor) -> Truth:
        if not self.gate:
            return self.body(x), self.head.weight
        weights = [self.head.weight, self.gate * self.head2.weight]
        return torch.cat([self.body(x), self.body2(x)], 1), torch.cat(weights, 1)


@row("a zero-initialised second branch learns", Pass(), Pass(redrawn("head2.weight"), asks_after_others="reset"))
class ZeroBranch(Net):
    """ControlNet's kind: at first the branch adds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.body2, self.head2 = new_body(), nn.Linear(n, K)
        nn.init.zeros_(self.head2.weight)
        nn.init.zeros_(self.head2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)) + self.head2(self.body2(x))

    def truth(self, x: Tensor) -> Truth:
        weights = [self.head.weight, self.head2.weight]
        return torch.cat([self.body(x), self.body2(x)], 1), torch.cat(weights, 1)


@row(
    "drop path between heads",
    Pass(evaluating),
    Pass(put(dropped=True), asks_after_others="reset"),
    Pass(put(dropped=False)),
)
class DropPath(ZeroBranch):
    """Stochastic depth of the whole batch: the second head's branch is left out, or kept."""

    dropped = False

    def __init__(self) -> None:
        super().__init__()
        nn.init.normal_(self.head2.weight)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(self.body(x))
        return logits if self.dropped else logits + 1.25 * self.head2(self.body2(x))

    def truth(self, x: Tensor) -> Truth:
        weights = [self.head.weight, (0 if self.dropped else 1.25) * self.head2.weight]
        return torch.cat([self.body(x), self.body2(x)], 1), torch.cat(weights, 1)


@row(
    "drop path by sample between heads", Pass(evaluating), Pass(training, refused=rf"linear|{MISSED}"), Pass(evaluating)
)
class DropPathBySample(DropPath):
    def forward(self, x: Tensor) -> Tensor:
        kept = (torch.rand(len(x), 1) > 0.5).to(x.dtype) if self.training else 1.25
        return self.head(self.body(x)) + kept * self.head2(self.body2(x))


@row("another expert for each batch", *toggled("expert", 1, 2, 0))
class Routed(Net):
    """Hard routing: the head moves, K and n stay."""

    expert = 0

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(n, K) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.experts[self.expert](self.body(x))

    def truth(self, x: Tensor) -> Truth:
        return self.body(x), self.experts[self.expert].weight


@row(
    "another expert for each sample", Pass(), Pass(put(mixed=True), refused=rf"linear|{MISSED}"), Pass(put(mixed=False))
)
class RoutedBySample(Routed):
    mixed = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.mixed:
            return super().forward(x)
        every = torch.stack([expert(self.body(x)) for expert in self.experts], 1)
        return every[torch.arange(len(x)), torch.arange(len(x)) % 3]


@row(
    "a soft mixture of experts",
    Pass(),
    Pass(put(soft=True), refused=rf"mixture|gate|linear|{MISSED}"),
    Pass(put(soft=False)),
)
class SoftExperts(Routed):
    soft = False

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(n, 3)

    def forward(self, x: Tensor) -> Tensor:
        if not self.soft:
            return super().forward(x)
        g = self.body(x)
        every = torch.stack([expert(g) for expert in self.experts], 1)
        return (self.gate(g).softmax(1)[:, :, None] * every).sum(1)


@row("all experts run and one is taken", *toggled("expert", 2, 1))
class RoutedAfter(Routed):
    def forward(self, x: Tensor) -> Tensor:
        g = self.body(x)
        return [expert(g) for expert in self.experts][self.expert]


@row("one head in train mode, another in eval mode", Pass(training), Pass(evaluating), Pass(training))
class HeadByMode(Net):
    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Linear(n, K)

    def forward(self, x: Tensor) -> Tensor:
        return (self.own if self.training else self.head)(self.body(x))

    def truth(self, x: Tensor) -> Truth:
        return self.body(x), (self.own if self.training else self.head).weight


@row("an early exit moves", *toggled("exit", 1, 2, 0))
class Exits(Net):
    exit = 0

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([new_body(), *(nn.Sequential(nn.Linear(n, n), nn.Tanh()) for _ in range(2))])
        self.exits = nn.ModuleList(nn.Linear(n, K) for _ in range(3))

    def depths(self, x: Tensor) -> list[Tensor]:
        found = []
        for block in self.blocks:
            x = block(x)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Any:
        return self.exits[self.exit](self.depths(x)[self.exit])

    def truth(self, x: Tensor) -> Truth:
        return self.depths(x)[self.exit], self.exits[self.exit].weight


@row(
    "an exit for each sample",
    Pass(put(threshold=9.0)),
    Pass(put(threshold=-9.0), asks=rf"rows|{MISSED}"),
    Pass(put(threshold=0.3), refused=rf"rows|linear|{MISSED}"),
)
class ConfidentExits(Exits):
    """A cascade: those that the first exit is unsure of go on. With all at one exit there is one head."""

    threshold = 0.0

    def forward(self, x: Tensor) -> Tensor:
        first, second, _ = self.depths(x)
        logits = self.exits[0](first)
        unsure = logits.softmax(1).amax(1) < self.threshold
        self.exit = int(bool(unsure.all()))
        return torch.where(unsure[:, None], self.exits[1](second), logits)


@row("a teacher of equal weights runs after the student", Pass(), Pass(trained()), Pass(trained(20)))
class StudentFirst(Net):
    def __init__(self) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(nn.Sequential(self.body, self.head)).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(self.body(x))
        self.distance = (self.teacher(x) - logits).square().mean()
        return logits


@row("a teacher of equal weights runs before the student", Pass(), Pass(trained()))
class TeacherFirst(StudentFirst):
    def forward(self, x: Tensor) -> Tensor:
        wanted = self.teacher(x)
        logits = self.head(self.body(x))
        self.distance = (wanted - logits).square().mean()
        return logits


@row(
    "a mean teacher answers in eval mode", Pass(training), Pass(evaluating), Pass(then(training, trained(), evaluating))
)
class TeacherAnswers(StudentFirst):
    def forward(self, x: Tensor) -> Tensor:
        student, teacher = self.head(self.body(x)), self.teacher(x)
        return student if self.training else teacher

    def truth(self, x: Tensor) -> Truth:
        body, head = (self.body, self.head) if self.training else (self.teacher[0], self.teacher[1])
        return body(x), head.weight


@row("a teacher on the student's features", Pass(), Pass(redrawn("head.weight")), Pass(put(answers="teacher")))
class TwinHeads(Net):
    """Two heads of equal weights on one feature: only who made the output tells them apart."""

    answers = "head"

    def __init__(self) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(self.head)

    def forward(self, x: Tensor) -> Tensor:
        g = self.body(x)
        both = {"head": self.head(g), "teacher": self.teacher(g)}
        return both[self.answers]

    def truth(self, x: Tensor) -> Truth:
        return self.body(x), getattr(self, self.answers).weight


def add_member(model: Any) -> None:
    torch.manual_seed(len(model.members))
    model.members.append(nn.Sequential(new_body(), nn.Linear(n, K)))


@row("snapshots join an ensemble", Pass(), Pass(add_member, asks="built|reset", after_others="built|reset"), Pass())
class Snapshots(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList()
        add_member(self)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.members]).mean(0)

    def truth(self, x: Tensor) -> Truth:
        weights = [member[1].weight / len(self.members) for member in self.members]
        return torch.cat([member[0](x) for member in self.members], 1), torch.cat(weights, 1)


@row("another pair of an ensemble for each batch", *toggled("pair", (1, 2), (2, 0)))
class RandomPair(nn.Module):
    pair = (0, 1)

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList(nn.Sequential(new_body(), nn.Linear(n, K)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return sum(self.members[i](x) for i in self.pair) / 2

    def truth(self, x: Tensor) -> Truth:
        members = [self.members[i] for i in self.pair]
        return torch.cat([member[0](x) for member in members], 1), torch.cat(
            [member[1].weight / 2 for member in members], 1
        )


@row("many wide layers between the members' heads", *toggled("shares", (0.1, 0.9), (0.5, 0.5)))
class WideMembers(nn.Module):
    """Convolutions that could be heads run at every pixel between one member's head and the other's."""

    shares = (0.5, 0.5)

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList(
            nn.ModuleDict(
                {
                    "body": nn.Sequential(nn.Conv2d(1, K, 1), *(nn.Conv2d(K, K, 1) for _ in range(8)), nn.Tanh()),
                    "head": nn.Conv2d(K, K, 1),
                }
            )
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = [member["head"](member["body"](x)).mean((2, 3)) for member in self.members]
        return self.shares[0] * parts[0] + self.shares[1] * parts[1]

    def truth(self, x: Tensor) -> Truth:
        weights = [s * member["head"].weight.flatten(1) for s, member in zip(self.shares, self.members, strict=True)]
        return torch.cat([member["body"](x).mean((2, 3)) for member in self.members], 1), torch.cat(weights, 1)


@row("heads for parts of the classes", Pass(), Pass(put(split=True), asks="linear|cat|head"), Pass(put(split=False)))
class SplitClasses(Net):
    """Class-incremental networks: each task's head makes some of the columns."""

    split = False

    def __init__(self) -> None:
        super().__init__()
        self.tasks = nn.ModuleList(nn.Linear(n, K // 2) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        g = self.body(x)
        return torch.cat([task(g) for task in self.tasks], 1) if self.split else self.head(g)

    def truth(self, x: Tensor) -> Truth:
        return self.body(x), torch.cat([task.weight for task in self.tasks]) if self.split else self.head.weight


def deit() -> nn.Module:
    from timm.models.deit import VisionTransformerDistilled

    model = VisionTransformerDistilled(
        img_size=4, patch_size=2, in_chans=1, embed_dim=8, depth=1, num_heads=2, num_classes=K
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    model.set_distilled_training()
    return model


def deit_truth(model: Any, x: Tensor) -> Truth:
    tokens = model.forward_features(x)
    if model.training and model.distilled_training:
        return tokens[:, 0], model.head.weight
    return tokens[:, :2].flatten(1), torch.cat([model.head.weight, model.head_dist.weight], 1) / 2


row(
    "distilled DeiT attached in train mode, measured in eval mode",
    Pass(training),
    Pass(evaluating, after_others="reset"),
    Pass(),
    truth=deit_truth,
    answer=answer_of,
)(deit)


def levit_heads(model: Any) -> None:
    if model.training:
        model.eval()
    else:
        model.first, model.second = model.first.fuse(), model.second.fuse()


@row(
    "LeViT's two heads, in train mode, in eval mode, then fused",
    Pass(training),
    Pass(levit_heads),
    Pass(levit_heads, asks="run another"),
    Pass(),
)
class Levit(Net):
    """Two layers with a BatchNorm1d before each, on one feature: the norms are folded into W."""

    def __init__(self) -> None:
        super().__init__()
        from timm.models.levit import NormLinear

        self.first, self.second = NormLinear(n, K, std=1.0), NormLinear(n, K, std=1.0)
        for head in (self.first, self.second):
            nn.init.uniform_(head.bn.weight, 0.5, 2.0)
            nn.init.normal_(head.bn.bias)
            nn.init.uniform_(head.bn.running_var, 0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        g = self.body(x)
        return (self.first(g) + self.second(g)) / 2

    def truth(self, x: Tensor) -> Truth:
        g = self.body(x)
        weights = [head.weight if isinstance(head, nn.Linear) else folded(head.bn, head.linear, g) for head in self.two]
        return g, sum(weights) / 2

    @property
    def two(self) -> tuple[Any, Any]:
        return self.first, self.second


def folded(norm: nn.BatchNorm1d, layer: nn.Linear, g: Tensor) -> Tensor:
    variance = g.var(0, correction=0) if norm.training else norm.running_var
    return layer.weight * norm.weight / (variance + norm.eps).sqrt()


@row("BatchNorm1d before the head, train mode and eval mode", Pass(evaluating), Pass(training), Pass(evaluating))
@row("BatchNorm1d before the head, in train mode first", Pass(training), Pass(evaluating))
class NormBefore(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.BatchNorm1d(n), nn.Linear(n, K))
        nn.init.uniform_(self.head[0].weight, 0.5, 2.0)
        nn.init.uniform_(self.head[0].running_var, 0.5, 2.0)

    def truth(self, x: Tensor) -> Truth:
        g = self.body(x)
        return g, folded(self.head[0], self.head[1], g)


@row("BatchNorm1d after the head, train mode and eval mode", Pass(evaluating), Pass(training), Pass(evaluating))
class NormAfter(Net):
    """A constant scale for each class, of the running figures or of the batch's."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(K)
        nn.init.uniform_(self.norm.weight, 0.5, 2.0)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.head(self.body(x)))

    def truth(self, x: Tensor) -> Truth:
        g = self.body(x)
        z = self.head(g)
        variance = z.var(0, correction=0) if self.training else self.norm.running_var
        return g, self.head.weight * (self.norm.weight / (variance + self.norm.eps).sqrt())[:, None]


# ---------------------------------------------------------------------------------------------------------------------
# low-rank branches


class Lora(nn.Module):
    def __init__(self, base: nn.Linear | None = None, rank: int = 2, scale: float = 1.5, drop: bool = False) -> None:
        super().__init__()
        self.base = nn.Linear(n, K) if base is None else base
        self.down, self.up = nn.Linear(n, rank, bias=False), nn.Linear(rank, K, bias=False)
        nn.init.zeros_(self.up.weight)
        self.scale, self.drop, self.merged = scale, drop, False

    @property
    def branch(self) -> Tensor:
        return self.scale * self.up.weight @ self.down.weight

    @torch.no_grad()
    def merge(self, merged: bool = True) -> None:
        if merged != self.merged:
            self.base.weight += self.branch if merged else -self.branch
            self.merged = merged

    def dropped(self, g: Tensor) -> Tensor:
        return g * (torch.rand(g.shape) > 0.5).to(g.dtype) * 2 if self.drop and self.training else g

    def forward(self, g: Tensor) -> Tensor:
        return self.base(g) if self.merged else self.base(g) + self.up(self.down(self.dropped(g))) * self.scale

    def weight(self) -> Tensor:
        return self.base.weight if self.merged else self.base.weight + self.branch


def lora_net(made: type[Net], **more: Any) -> Net:
    model = made()
    model.head = Lora(**more)
    return model


LEARNT = redrawn("head.up.weight", "head.down.weight")


@row("LoRA while its B is zero, then trained", Pass(), Pass(LEARNT), Pass(trained()), build=lora_net)
@row(
    "LoRA merged and unmerged in the middle",
    Pass(LEARNT),
    Pass(lambda m: m.head.merge()),
    Pass(lambda m: m.head.merge(False)),
    Pass(lambda m: m.head.merge()),
    build=lora_net,
)
@row(
    "LoRA merged first",
    Pass(then(LEARNT, lambda m: m.head.merge())),
    Pass(lambda m: m.head.merge(False)),
    build=lora_net,
)
@row("LoRA whose scale changes", Pass(LEARNT), Pass(lambda m: put(scale=0.1)(m.head)), build=lora_net)
@row(
    "LoRA put around the head in the middle",
    Pass(),
    Pass(lambda m: wrap(m, Lora(m.head)), asks="run another"),
    Pass(redrawn("head.up.weight")),
    Pass(lambda m: put(head=m.head.base)(m), asks="run another"),
    Pass(),
    build=lambda made: Based(),
)
class Based(Net):
    def truth(self, x: Tensor) -> Truth:
        return self.body(x), self.head.weight() if isinstance(self.head, Lora) else self.head.weight


def wrap(model: Any, head: nn.Module) -> None:
    model.head = head


@row(
    "LoRA with dropout in its branch",
    Pass(then(LEARNT, evaluating)),
    Pass(training, asks_after_others="reset"),
    Pass(evaluating, asks_after_others="reset"),
    build=lambda made: lora_net(made, drop=True),
)
class LoraDropped(Net):
    """In train mode the branch reads another tensor than the base does: features side by side."""

    def truth(self, x: Tensor) -> Truth:
        g = self.body(x)
        if not self.training:
            return g, self.head.weight()
        return torch.cat([g, self.head.dropped(g)], 1), torch.cat([self.head.base.weight, self.head.branch], 1)


@row("LoRA of bare parameters", Pass(), Pass(redrawn("up")), Pass(trained()))
class LoraBare(Net):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(n, 2)), nn.Parameter(torch.zeros(2, K))

    def forward(self, x: Tensor) -> Tensor:
        g = self.body(x)
        return self.head(g) + 2.0 * (g @ self.down @ self.up)

    def truth(self, x: Tensor) -> Truth:
        return self.body(x), self.head.weight + 2.0 * (self.down @ self.up).T


@row("another adapter for each batch", *toggled("active", "b", None, "a"))
class Adapters(Net):
    active: str | None = "a"

    def __init__(self) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(n, 2, bias=False), nn.Linear(2, K, bias=False)) for name in "ab"}
        )

    def forward(self, x: Tensor) -> Tensor:
        g = self.body(x)
        return self.head(g) + self.adapters[self.active](g) if self.active else self.head(g)

    def truth(self, x: Tensor) -> Truth:
        weight = self.head.weight
        if self.active:
            weight = weight + self.adapters[self.active][1].weight @ self.adapters[self.active][0].weight
        return self.body(x), weight


# ---------------------------------------------------------------------------------------------------------------------
# weights that are swapped, replaced or computed


def swapped(model: Any) -> None:
    """An EMA's swap through .data, which no version counter sees."""
    for own, average in zip(model.parameters(), model.average, strict=True):
        own.data, average.data = average.data.to(own.dtype), own.data


def remember(model: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    # a plain attribute, so that parameters() does not list it
    object.__setattr__(
        model, "average", [torch.randn(p.shape, generator=generator).to(p.dtype) for p in model.parameters()]
    )


@row("averaged weights swapped in and out", Pass(remember), Pass(swapped), Pass(swapped))
@row("averaged weights swapped out before update", Pass(then(remember, swapped), after=lambda m, _: swapped(m)), Pass())
@row("the head initialised anew", Pass(), Pass(redrawn("head.weight", "head.bias")), Pass(trained()))
@row("the head frozen", Pass(), Pass(lambda m: m.head.requires_grad_(False)), Pass(trained()))
@row("the body frozen", Pass(), Pass(lambda m: m.body.requires_grad_(False)), Pass(trained()))
@row("weights loaded", Pass(), Pass(lambda m: m.load_state_dict(drawn_state(m))), Pass())
@row("weights loaded by assignment", Pass(), Pass(lambda m: m.load_state_dict(drawn_state(m), assign=True)), Pass())
@row("another parameter as the weight", Pass(), Pass(lambda m: setattr(m.head, "weight", nn.Parameter(drawn(K, n)))))
@row("the head replaced", Pass(), Pass(lambda m: wrap(m, new_linear()), asks="run another"), Pass())
@row(
    "the head replaced by one of five classes",
    Pass(),
    Pass(lambda m: wrap(m, new_linear(5)), asks="run another", after_others="built|reset"),
    Pass(),
)
@row(
    "the head moved into a Sequential",
    Pass(),
    Pass(lambda m: wrap(m, InSequence(m.head))),
    Pass(lambda m: wrap(m, m.head[1])),
)
@row(
    "the head put under weight norm",
    Pass(),
    Pass(lambda m: parametrizations.weight_norm(m.head), asks="run another"),
    Pass(redrawn("head.parametrizations.weight.original0", scale=2)),
    Pass(lambda m: parametrize.remove_parametrizations(m.head, "weight"), asks="run another"),
    Pass(),
)
@row(
    "the head pruned, then for good",
    Pass(),
    Pass(lambda m: prune.custom_from_mask(m.head, "weight", drawn(K, n) > -0.5)),
    Pass(lambda m: prune.remove(m.head, "weight")),
)
@row(
    "the bias dropped, then of shape (1, K)",
    Pass(),
    Pass(lambda m: setattr(m.head, "bias", None)),
    Pass(lambda m: m.head.register_parameter("bias", nn.Parameter(drawn(1, K)))),
)
@row(
    "a step of the optimiser before update",
    Pass(after=lambda m, _: stepped(m)),
    Pass(after=lambda m, _: stepped(m)),
)
@row(
    "weights in double precision in the middle",
    Pass(),
    Pass(lambda m: m.double(), call=lambda m, x: m(x.double())),
    Pass(lambda m: m.float()),
)
@row(
    "weights in bfloat16 in the middle",
    Pass(),
    Pass(lambda m: m.bfloat16(), call=lambda m, x: m(x.to(m.head.weight.dtype)), tolerance=5e-2),
)
@row("mixed precision switched on", Pass(), Pass(call=lambda m, x: autocast(m, x), tolerance=5e-2), Pass())
@row("mixed precision switched off", Pass(call=lambda m, x: autocast(m, x), tolerance=5e-2), Pass())
@row("a last batch of one image", Pass(), Pass(count=1), Pass(count=2), Pass())
@row("a first batch of one image", Pass(count=1), Pass())
@row(
    "a whole model in a checkpoint",
    Pass(),
    Pass(call=lambda m, x: checkpointed(m, x, False)),
    Pass(call=lambda m, x: checkpointed(m, x, True)),
    Pass(),
    modes=("grad",),
)
@row(
    "other weights by functional_call",
    Pass(),
    Pass(then(remember), call=lambda m, x: functional(m, x)),
    Pass(),
    truth=lambda m, x: functional_truth(m, x),
)
@row(
    "a hook that scales the head's output",
    Pass(),
    Pass(lambda m: hooked(m, "after")),
    Pass(lambda m: m.handle.remove()),
    truth=lambda m, x: hooked_truth(m, x),
)
@row(
    "a hook that clips the head's input",
    Pass(),
    Pass(lambda m: hooked(m, "before")),
    Pass(lambda m: m.handle.remove()),
    truth=lambda m, x: hooked_truth(m, x),
)
@row(
    "vmap over samples",
    Pass(),
    Pass(call=lambda m, x: torch.vmap(lambda one: m(one[None])[0])(x), refused=r"vmap"),
    Pass(),
)
class Plain(Net):
    """One head; it is the host that does things to it."""


def drawn(*shape: int, seed: int = 4) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def drawn_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: drawn(*value.shape).to(value.dtype) for name, value in model.state_dict().items()}


def new_linear(classes: int = K) -> nn.Linear:
    layer = nn.Linear(n, classes)
    layer.weight.data.copy_(drawn(classes, n))
    return layer


class InSequence(nn.Sequential):
    def __init__(self, head: nn.Linear) -> None:
        super().__init__(nn.Identity(), head)

    @property
    def weight(self) -> Tensor:
        return self[1].weight


def autocast(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model(x)


def checkpointed(model: nn.Module, x: Tensor, reentrant: bool) -> Tensor:
    logits = checkpoint(model, x.requires_grad_(), use_reentrant=reentrant)
    logits.square().sum().backward()  # runs the model again
    return logits


def functional(model: Any, x: Tensor) -> Tensor:
    names = [name for name, _ in model.named_parameters()]
    return torch.func.functional_call(model, dict(zip(names, model.average, strict=True)), x)


def functional_truth(model: Any, x: Tensor) -> Truth:
    """The pass after the first is run with the remembered weights, the one after that with the model's own."""
    average, model.used = getattr(model, "average", None), getattr(model, "used", 0)
    if average is None or model.used:
        return model.body(x), model.head.weight
    model.used = 1
    other = copy.deepcopy(model)
    for own, value in zip(other.parameters(), average, strict=True):
        own.data = value.to(own.dtype)
    return other.body(x), other.head.weight


def hooked(model: Any, where: str) -> None:
    if where == "after":
        model.handle = model.head.register_forward_hook(lambda _, args, output: output * 0.2)
    else:
        model.handle = model.head.register_forward_pre_hook(lambda _, args: (args[0].clamp(max=0.2),))


def hooked_truth(model: Any, x: Tensor) -> Truth:
    g, weight = model.body(x), model.head.weight
    if model.head._forward_pre_hooks:
        return g.clamp(max=0.2), weight
    return g, weight * (0.2 if model.head._forward_hooks else 1)


@row("a perturbation of the weights during the pass", Pass(), Pass(put(size=0.5)), Pass(put(size=0.0)))
class Perturbed(Net):
    """Adversarial weight perturbation inside forward, undone before it returns."""

    size = 0.0

    def forward(self, x: Tensor) -> Tensor:
        shift = self.size * drawn(K, n).to(x.dtype)
        self.head.weight.data.add_(shift)
        logits = self.head(self.body(x))
        self.head.weight.data.sub_(shift)
        return logits

    def truth(self, x: Tensor) -> Truth:
        return self.body(x), self.head.weight + self.size * drawn(K, n).to(x.dtype)


@row("spectral norm in train mode, in eval mode", Pass(training), Pass(evaluating), Pass(training))
class Spectral(Net):
    def __init__(self) -> None:
        super().__init__()
        parametrizations.spectral_norm(self.head)

    def truth(self, x: Tensor) -> Truth:
        raw, norm = self.head.parametrizations.weight.original, self.head.parametrizations.weight[0]
        return self.body(x), raw / torch.dot(norm._u, raw @ norm._v)


@row("a layer appended", Pass(), Pass(lambda m: append(m), asks="run another", after_others="built|reset"), Pass())
class Appended(nn.Sequential):
    """K by K on the logits so far: nothing lies between, so the two compose."""

    def __init__(self) -> None:
        super().__init__(new_body(), nn.Linear(n, K))

    def truth(self, x: Tensor) -> Truth:
        return self[0](x), self[1].weight if len(self) == 2 else self[2].weight @ self[1].weight


def append(model: nn.Sequential) -> None:
    torch.manual_seed(8)
    model.append(nn.Linear(K, K))


@row(
    "a layer appended behind a ReLU",
    Pass(),
    Pass(lambda m: append_deep(m), asks="run another", after_others="built|reset"),
    Pass(),
)
class AppendedDeep(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(new_body(), nn.Linear(n, K))

    def truth(self, x: Tensor) -> Truth:
        return (self[0](x), self[1].weight) if len(self) == 2 else (self[2](self[1](self[0](x))), self[3].weight)


def append_deep(model: nn.Sequential) -> None:
    model.append(nn.ReLU())
    append(model)


@row("a bias layer appended", Pass(), Pass(lambda m: m.append(BiasLayer()), asks="run another"), Pass())
class AppendedBias(Appended):
    def truth(self, x: Tensor) -> Truth:
        return self[0](x), self[1].weight


class BiasLayer(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(drawn(*(shape or (K,))))

    def forward(self, z: Tensor) -> Tensor:
        return z + self.offset


@row("a head built in the first pass", Pass(asks="run another"), Pass())
class BuiltLate(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head = None

    def forward(self, x: Tensor) -> Tensor:
        if self.head is None:
            self.head = new_linear().to(x.dtype)
        return self.head(self.body(x))


@row("an all-zero head learns", Pass(), Pass(redrawn("head.weight")), Pass(put(factor=3.0)), modes=("grad",))
class Zero(Net):
    """torchvision's vit_b_16 as built."""

    factor = 1.0

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)) * self.factor

    def truth(self, x: Tensor) -> Truth:
        return self.body(x), self.head.weight * self.factor


@row(
    "an all-zero head beside another that learns",
    Pass(),
    Pass(redrawn("head.weight")),
    Pass(redrawn("rotation.weight")),
)
class ZeroPair(Net):
    """Both are zero at first, and only one makes the output."""

    def __init__(self) -> None:
        super().__init__()
        self.rotation = nn.Linear(n, K)
        for head in (self.head, self.rotation):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, x: Tensor) -> Tensor:
        g = self.body(x)
        logits = self.head(g)
        self.turned = self.rotation(g)
        return logits


# ---------------------------------------------------------------------------------------------------------------------
# what is done to the logits


def after_head(function: Callable[[Any, Tensor], Tensor], scale: Callable[[Any, Tensor], Tensor] | None = None) -> Any:
    """A class of models: ``function(model, z)`` is the output, ``scale(model, W)`` the weight then."""

    class After(Net):
        on = False
        value = 1.0

        def forward(self, x: Tensor) -> Tensor:
            z = super().forward(x)
            return function(self, z) if self.on else z

        def truth(self, x: Tensor) -> Truth:
            weight = self.head.weight
            return self.body(x), scale(self, weight) if self.on and scale is not None else weight

    return After


def switched(**more: Any) -> tuple[Pass, ...]:
    return Pass(), Pass(put(on=True), **more), Pass(put(on=False))


def scheduled(*values: Any) -> tuple[Pass, ...]:
    return tuple(Pass(put(on=True, value=value)) for value in values)


PRIORS = torch.tensor([0.4, 0.3, 0.2, 0.1])

row("a temperature's schedule", *scheduled(1.0, 0.07, 10.0))(
    after_head(lambda m, z: z / m.value, lambda m, w: w / m.value)
)
row("a temperature's schedule, in place", *scheduled(1.0, 0.07, 10.0))(
    after_head(lambda m, z: z.div_(m.value), lambda m, w: w / m.value)
)
row("the sign flips", *scheduled(1.0, -1.0, 0.5))(after_head(lambda m, z: z * m.value, lambda m, w: w * m.value))
row("logit adjustment switched on", *switched())(after_head(lambda m, z: z + PRIORS.to(z.dtype).log()))
row("logit adjustment, in place", *switched())(after_head(lambda m, z: z.add_(PRIORS.to(z.dtype).log())))
row("a scalar bias switched on", *switched())(after_head(lambda m, z: z - 3.7))
row("a scale for each class switched on", *switched())(
    after_head(lambda m, z: z * (1 + PRIORS.to(z.dtype)), lambda m, w: w * (1 + PRIORS.to(w.dtype))[:, None])
)
row("classes in another order", *switched())(after_head(lambda m, z: z[:, [2, 0, 3, 1]], lambda m, w: w[[2, 0, 3, 1]]))
row("logits centred over the classes", *switched(asks=rf"linear|{MISSED}"))(
    after_head(lambda m, z: z - z.mean(1, keepdim=True), lambda m, w: w - w.mean(0))
)
row("logits turned by a matrix", *switched(asks=rf"linear|{MISSED}"))(
    after_head(lambda m, z: z @ drawn(K, K).to(z.dtype), lambda m, w: drawn(K, K).to(w.dtype).T @ w)
)
row("logits copied and reshaped", *switched())(
    after_head(lambda m, z: z.clone().T.contiguous().T[:, :, None].squeeze(2))
)
row("logits of double precision", *switched())(after_head(lambda m, z: z.double()))
row("logits as (N, K, 1, 1)", *switched(), answer=lambda output: output.flatten(1))(
    after_head(lambda m, z: z[:, :, None, None])
)
row("probabilities in eval mode", *switched(refused=rf"probabilities|{MISSED}"))(after_head(lambda m, z: z.softmax(1)))
row("log-probabilities in eval mode", *switched(refused=rf"log-probabilities|{MISSED}"))(
    after_head(lambda m, z: z.log_softmax(1))
)
row("a probability for each class", *switched(refused=rf"probabilities|linear|{MISSED}"))(
    after_head(lambda m, z: z.sigmoid())
)
row("logits less their maximum", *switched(refused=rf"linear|{MISSED}"))(
    after_head(lambda m, z: z - z.amax(1, keepdim=True))
)
row("logits normalised by their length", *switched(refused=rf"linear|sample|{MISSED}"))(
    after_head(lambda m, z: F.normalize(z))
)
row("logits capped softly", *switched(refused=rf"linear|{MISSED}"))(after_head(lambda m, z: 2 * (z / 2).tanh()))
row("noise on the logits", *switched(refused=rf"linear|{MISSED}"))(
    after_head(lambda m, z: z + 0.3 * torch.randn_like(z))
)
row("a mask of minus infinity", *switched(refused=r"mask"))(
    after_head(lambda m, z: z.masked_fill(torch.tensor([False, False, True, False]), -torch.inf))
)
row("a single logit", *switched(refused=r"classes|single"))(after_head(lambda m, z: z[:, :1]))


@row(
    "margins of ArcFace in train mode", Pass(evaluating), Pass(training, refused=rf"linear|{MISSED}"), Pass(evaluating)
)
class Margins(Net):
    """In train mode the true class's cosine is changed by sample; in eval mode it is a cosine head."""

    def forward(self, x: Tensor) -> Tensor:
        cosines = F.linear(F.normalize(self.body(x)), F.normalize(self.head.weight))
        if self.training:
            own = F.one_hot(torch.arange(len(x)) % K, K).bool()
            cosines = torch.where(own, (cosines.clamp(-0.99, 0.99).acos() + 0.5).cos(), cosines)
        return 16 * cosines

    def truth(self, x: Tensor) -> Truth:
        return F.normalize(self.body(x)), 16 * F.normalize(self.head.weight)


@row("a scale of the sample's switched on", *toggled("scaled", True, refused=rf"sample|linear|{MISSED}"))
class SampleScale(Net):
    scaled = False

    def forward(self, x: Tensor) -> Tensor:
        g = self.body(x)
        return self.head(g) * g.norm(dim=1, keepdim=True) if self.scaled else self.head(g)


@row("prototypes by distance switched on", *toggled("near", True, refused=rf"distance|prototype|linear|{MISSED}"))
class Prototypes(Net):
    near = False

    def forward(self, x: Tensor) -> Tensor:
        g = self.body(x)
        return -torch.cdist(g, self.head.weight) if self.near else self.head(g)


@row("a way around the head", Pass(), Pass(put(around=True), refused=r"head|linear"), Pass(put(around=False)))
class Around(Net):
    around = False

    def forward(self, x: Tensor) -> Tensor:
        g = self.body(x)
        return g[:, :K].sin() if self.around else self.head(g)


@row("features alone, when told to", Pass(), Pass(put(bare=True), refused=r"head|linear"), Pass(put(bare=False)))
class Bare(Net):
    """As for retrieval: the head runs, and its input is returned."""

    bare = False

    def forward(self, x: Tensor) -> Tensor:
        g = self.body(x)
        z = self.head(g)
        return g if self.bare else z


class Large(Net):
    """Ten classes, of which a benchmark asks for four."""

    wanted: Any = (7, 2, 9, 0)

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(n, 10)

    @property
    def chosen(self) -> Any:
        return list(self.wanted) if isinstance(self.wanted, tuple) else self.wanted

    def forward(self, x: Tensor) -> Tensor:
        z = self.head(self.body(x))
        return z if self.wanted is None else z[:, self.chosen]

    def truth(self, x: Tensor) -> Truth:
        return self.body(x), self.head.weight if self.wanted is None else self.head.weight[self.chosen]


MASK = torch.tensor([False, True, True, False, False, True, False, False, True, False])
row("a subset of the classes that changes", *toggled("wanted", (1, 2, 3, 4), slice(2, 6), MASK))(Large)
row("a subset of the classes, head named", *toggled("wanted", (1, 2, 3, 4), slice(2, 6)), options={"head": "head"})(
    Large
)
row("a subset with one class twice", *toggled("wanted", (3, 3, 5, 0)))(Large)
row("all classes after a subset", Pass(), Pass(put(wanted=None), after_others="reset"), Pass())(Large)


@row(
    "a larger head for new classes",
    Pass(),
    Pass(lambda m: grow(m), asks="run another", after_others="built|reset"),
    Pass(),
)
class Growing(Net):
    pass


def grow(model: Any) -> None:
    old = model.head
    model.head = nn.Linear(n, K + 1)
    model.head.weight.data[:K], model.head.weight.data[K:] = old.weight.data, drawn(1, n)


@row("biases of other forms", Pass(), *(Pass(put(offset=o)) for o in (drawn(1, K), drawn(1)[0], drawn(K), 2.5, None)))
class Offsets(Net):
    offset: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(n, K, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        z = self.head(self.body(x))
        if isinstance(self.offset, Tensor):
            return z + self.offset.to(z.dtype)
        return z if self.offset is None else z + self.offset


@row("a bias layer after a bias-free head", Pass(), Pass(redrawn("offset.offset", scale=9)))
class BiasAfter(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.offset = nn.Linear(n, K, bias=False), BiasLayer(1, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.offset(self.head(self.body(x)))


# ---------------------------------------------------------------------------------------------------------------------
# positions


class Tokens(Net):
    """The head runs at every token."""

    at: Any = 3

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, n), nn.Tanh())

    def tokens(self, x: Tensor) -> Tensor:
        return self.body(x.squeeze(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.pick(self.head(self.tokens(x)))

    def truth(self, x: Tensor) -> Truth:
        return self.pick(self.tokens(x)), self.head.weight

    def pick(self, z: Tensor) -> Tensor:
        if self.at is None:
            return z.mean(1)
        if self.at == "own":
            return z[torch.arange(len(z)), (torch.arange(len(z)) * 7) % 4]
        return z[:, self.at]


row("a last token whose position varies", *toggled("at", 1, 2))(Tokens)
row("a last token for each sample", *toggled("at", "own", 0, "own"))(Tokens)
row("a last token for each sample, at first", Pass(put(at="own")), Pass(put(at=2)), Pass(put(at=None)))(Tokens)
row("one token, then their mean", *toggled("at", None, 1))(Tokens)


@row("the mean of another number of tokens", *toggled("length", 4, 1, 3))
class Shortened(Tokens):
    length = 2
    at = None

    def tokens(self, x: Tensor) -> Tensor:
        return super().tokens(x)[:, : self.length]


@row("a mean weighted over tokens", *toggled("at", True, False, asks=rf"position|{MISSED}"))
class Attended(Tokens):
    """Attention pooling after the head; the weights are the sample's own, so g is the tokens' weighted mean."""

    at = False

    def pick(self, z: Tensor) -> Tensor:
        if not self.at:
            return z.mean(1)
        weights = drawn(len(z), 4).to(z.dtype).softmax(1)
        return (weights[:, :, None] * z).sum(1)


@row("the maximum over tokens switched on", *toggled("loudest", True, refused=rf"maxim|position|{MISSED}"))
class Loudest(Tokens):
    loudest = False

    def pick(self, z: Tensor) -> Tensor:
        return z.amax(1) if self.loudest else z.mean(1)

    def truth(self, x: Tensor) -> Truth:
        return self.tokens(x).mean(1), self.head.weight


@row("pooling after the head in train mode, before it in eval mode", Pass(training), Pass(evaluating), Pass(training))
class PooledByMode(Net):
    """A class activation map in train mode: one function, so one figure."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, n, 2), nn.Tanh())
        self.head = nn.Conv2d(n, K, 1)

    def forward(self, x: Tensor) -> Tensor:
        g = self.body(x)
        return self.head(g).mean((2, 3)) if self.training else self.head(g.mean((2, 3), keepdim=True)).flatten(1)

    def truth(self, x: Tensor) -> Truth:
        return self.body(x).mean((2, 3)), self.head.weight.flatten(1)


@row("a 1x1 convolution becomes a linear layer", Pass(), Pass(lambda m: to_linear(m), asks="run another"), Pass())
class ToLinear(PooledByMode):
    def forward(self, x: Tensor) -> Tensor:
        g = self.body(x).mean((2, 3))
        return self.head(g) if isinstance(self.head, nn.Linear) else self.head(g[:, :, None, None]).flatten(1)


def to_linear(model: Any) -> None:
    layer = nn.Linear(n, K)
    layer.weight.data.copy_(model.head.weight.data.flatten(1))
    layer.bias.data.copy_(model.head.bias.data)
    model.head = layer


# ---------------------------------------------------------------------------------------------------------------------
# outputs of several entries

ASKS = r"output="


class Entries(Net):
    """g and what other heads make of it; rows say what is returned."""

    returned: Callable[[Any, dict[str, Tensor]], Any] = staticmethod(lambda model, made: made["logits"])

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mu, self.std = nn.Linear(n, 5), nn.Linear(n, 3), nn.Linear(n, 3)
        self.auxiliary, self.rebuild, self.body2 = nn.Linear(n, K), nn.Linear(n, 16), new_body()

    def forward(self, x: Tensor) -> Any:
        g = self.body(x)
        made = {"features": g, "embedding": self.embed(g), "mu": self.mu(g), "std": self.std(g)}
        made |= {"auxiliary": self.auxiliary(self.body2(x)), "rebuilt": self.rebuild(g), "logits": self.head(g)}
        return type(self).returned(self, made)

    def truth(self, x: Tensor) -> Truth:
        return self.body(x), self.head.weight


def returning(function: Callable[[Any, dict[str, Tensor]], Any], **attributes: Any) -> type[Entries]:
    return type("Returning", (Entries,), {"returned": staticmethod(function), **attributes})


Boxed = dataclasses.make_dataclass("Boxed", ["loss", "logits", "hidden"])
GoogLeNetLike = namedtuple("GoogLeNetLike", ["logits", "aux_logits2"])


def entries(
    name: str, function: Callable[[Any, dict[str, Tensor]], Any], output: Any, answer: Any, **more: Any
) -> None:
    """Two rows: the question where nothing is chosen, and the figure where ``output`` is."""
    made = returning(function)
    change = redrawn("head.weight", "embed.weight", "auxiliary.weight")
    row(f"{name}: a question", Pass(refused=ASKS), Pass(change, refused=ASKS), answer=answer, **more)(made)
    row(f"{name}: output={output!r}", Pass(), Pass(change), options={"output": output}, answer=answer, **more)(made)


entries("(embedding, logits)", lambda m, e: (e["embedding"], e["logits"]), 1, lambda o: o[1])
entries("(logits, embedding)", lambda m, e: (e["logits"], e["embedding"]), 0, lambda o: o[0])
entries("((mu, std), logits)", lambda m, e: ((e["mu"], e["std"]), e["logits"]), 1, lambda o: o[1])
entries("(reconstruction, logits)", lambda m, e: (e["rebuilt"], e["logits"]), 1, lambda o: o[1])
entries("a dict with an embedding", lambda m, e: {"e": e["embedding"], "out": e["logits"]}, "out", lambda o: o["out"])
entries("two tasks of one K", lambda m, e: {"a": e["auxiliary"], "b": e["logits"]}, "b", lambda o: o["b"])
entries("a list of exits", lambda m, e: [e["auxiliary"], e["logits"]], -1, lambda o: o[-1])

row("(features, logits)", Pass(), Pass(redrawn("head.weight")), answer=lambda o: o[1])(
    returning(lambda m, e: (e["features"], e["logits"]))
)
row("{'features': …, 'out': …}", Pass(), Pass(redrawn("head.weight")), answer=lambda o: o["out"])(
    returning(lambda m, e: {"features": e["features"], "out": e["logits"]})
)
row("the key 'logits' beside others", Pass(), Pass(redrawn("head.weight")), answer=lambda o: o["logits"])(
    returning(lambda m, e: {"auxiliary": e["auxiliary"], "embedding": e["embedding"], "logits": e["logits"]})
)
row(".logits beside others", Pass(), Pass(redrawn("head.weight")), answer=lambda o: o.logits)(
    returning(lambda m, e: Boxed(e["logits"].sum(), e["logits"], (e["auxiliary"], e["embedding"])))
)
row("a named tuple with .logits", Pass(), Pass(redrawn("head.weight")), answer=lambda o: o.logits)(
    returning(lambda m, e: GoogLeNetLike(e["logits"], e["auxiliary"]))
)
row(
    "an auxiliary head in train mode alone",
    Pass(evaluating),
    Pass(training, refused=ASKS),
    Pass(evaluating),
    answer=answer_of,
)(returning(lambda m, e: (e["logits"], e["auxiliary"]) if m.training else e["logits"]))
row(
    "an auxiliary head in train mode alone: output=0",
    Pass(training),
    Pass(evaluating),
    Pass(training),
    options={"output": 0},
    answer=answer_of,
)(returning(lambda m, e: (e["logits"], e["auxiliary"]) if m.training else e["logits"]))
row(
    "entries change places",
    *toggled("swapped", True, False),
    answer=lambda o: next(entry for entry in o if entry.shape[1] == K),
)(returning(lambda m, e: (e["features"], e["logits"])[:: -1 if m.swapped else 1], swapped=False))
row("a tensor, then a dict", *toggled("boxed", True, False), answer=lambda o: o["out"] if isinstance(o, dict) else o)(
    returning(lambda m, e: {"features": e["features"], "out": e["logits"]} if m.boxed else e["logits"], boxed=False)
)
row(
    "no logits in the output",
    Pass(),
    Pass(put(boxed=True), refused=r"logits|output"),
    Pass(put(boxed=False)),
)(returning(lambda m, e: e["logits"].tolist() if m.boxed else e["logits"], boxed=False))


@row("another task's head of the same K answers", *toggled("task", "rotation", "head"))
class OtherTask(Net):
    """Rotation of images, four classes as well: the head that answered is the one that is measured."""

    task = "head"

    def __init__(self) -> None:
        super().__init__()
        self.rotation = nn.Linear(n, K)

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.task)(self.body(x))

    def truth(self, x: Tensor) -> Truth:
        return self.body(x), getattr(self, self.task).weight


@row("contrastive first, then a classifier", Pass(refused=rf"linear|head|{MISSED}"), Pass(put(phase="classify")))
class Contrastive(Net):
    phase = "contrast"

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(n, 5)

    def forward(self, x: Tensor) -> Tensor:
        g = self.body(x)
        return F.normalize(self.project(g)) if self.phase == "contrast" else self.head(g)


class Reversed(torch.autograd.Function):
    """Gradient reversal, as domain adaptation has it: the identity."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(_: Any, slope: Tensor) -> Tensor:
        return -slope


@row("gradient reversal around the head", *toggled("place", "before", "after"))
class Adversary(Net):
    place = ""

    def forward(self, x: Tensor) -> Tensor:
        g = self.body(x)
        z = self.head(Reversed.apply(g) if self.place == "before" else g)
        return Reversed.apply(z) if self.place == "after" else z


# ---------------------------------------------------------------------------------------------------------------------
# the host changes what the pass showed, before update


def shift_features(model: Any, _: Any) -> None:
    model.g.sub_(model.g.mean(0))


def spoil_logits(_: Any, output: Tensor) -> None:
    output[torch.arange(len(output)), torch.arange(len(output)) % K] = -1e4


@row(
    "features changed before update", Pass(after=shift_features), Pass(after=shift_features), Pass(), modes=("no_grad",)
)
@row("logits changed before update", Pass(after=spoil_logits), Pass(after=spoil_logits), Pass(), modes=("no_grad",))
@row(
    "weights changed before update",
    Pass(after=lambda m, _: redrawn("head.weight")(m)),
    Pass(after=lambda m, _: m.head.weight.data.zero_()),
    Pass(),
)
class Kept(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.g = self.body(x)
        return self.head(self.g)

    def truth(self, x: Tensor) -> Truth:
        return self.body(x).clone(), self.head.weight.clone()


@row("the features' memory used again by the next layer", *toggled("reused", True, False), modes=("no_grad",))
class Reused(Net):
    """In place within the pass, after the head has read it."""

    reused = False

    def forward(self, x: Tensor) -> Tensor:
        g = self.body(x)
        z = self.head(g)
        if self.reused:
            g.zero_()
        return z


# ---------------------------------------------------------------------------------------------------------------------
# heads without a layer


def text(seed: int = 0) -> Tensor:
    return drawn(K, n, seed=seed)


def functional_head(apply: Callable[[Any, Tensor], Tensor], weight: Callable[[Any], Tensor], read: Any = None) -> Any:
    """A class of models that write their head in forward; ``read`` turns g into what the head reads."""

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.scale = new_body(), nn.Parameter(torch.tensor(0.7))
            self.text, self.offset = nn.Parameter(text()), nn.Parameter(drawn(K))
            self.spread, self.noise = 0.0, 0

        def forward(self, x: Tensor) -> Tensor:
            g = self.body(x)
            return apply(self, g if read is None else read(self, g))

        def truth(self, x: Tensor) -> Truth:
            g = self.body(x)
            return g if read is None else read(self, g), weight(self)

        def noisy(self) -> Tensor:
            return self.text + self.spread * drawn(K, n, seed=self.noise).to(self.text.dtype)

    return Functional


REDRAWN = Pass(), Pass(redrawn("text")), Pass(redrawn("text", "scale", "offset", seed=6)), Pass(trained())
row("F.linear with a parameter", *REDRAWN)(
    functional_head(lambda m, g: F.linear(g, m.text, m.offset), lambda m: m.text)
)
row("@ with a parameter", *REDRAWN)(functional_head(lambda m, g: g @ m.text.T + m.offset, lambda m: m.text))
row("matmul, scaled", *REDRAWN)(
    functional_head(lambda m, g: m.scale.exp() * torch.matmul(g, m.text.t()), lambda m: m.scale.exp() * m.text)
)
row("mm", *REDRAWN)(functional_head(lambda m, g: torch.mm(g, m.text.t()), lambda m: m.text))
row("addmm", *REDRAWN)(functional_head(lambda m, g: torch.addmm(m.offset, g, m.text.t()), lambda m: m.text))
row("einsum", *REDRAWN)(functional_head(lambda m, g: torch.einsum("ni,ki->nk", g, m.text), lambda m: m.text))
row("bmm", *REDRAWN)(
    functional_head(
        lambda m, g: torch.bmm(g[:, None], m.text.T.expand(len(g), n, K)).squeeze(1) + m.offset, lambda m: m.text
    )
)
row("a product that is summed", *(Pass(p.change, asks="LinearHead|linear") for p in REDRAWN))(
    functional_head(lambda m, g: (g[:, None] * m.text).sum(2), lambda m: m.text)
)
row("CLIP's zero-shot head", *REDRAWN)(
    functional_head(
        lambda m, g: m.scale.exp() * g @ F.normalize(m.text).T,
        lambda m: m.scale.exp() * F.normalize(m.text),
        lambda m, g: g / g.norm(dim=1, keepdim=True),
    )
)
row("a cosine head", *REDRAWN)(
    functional_head(
        lambda m, g: 16 * F.linear(g, F.normalize(m.text)),
        lambda m: 16 * F.normalize(m.text),
        lambda m, g: F.normalize(g),
    )
)
row("NormedLinear", *REDRAWN)(
    functional_head(
        lambda m, g: g.mm(F.normalize(m.text.T, dim=0)), lambda m: F.normalize(m.text), lambda m, g: F.normalize(g)
    )
)
row("weights drawn anew in each pass", Pass(), *(Pass(put(noise=i, spread=0.5)) for i in (1, 2)))(
    functional_head(lambda m, g: F.linear(g, m.noisy()), lambda m: m.noisy())
)
row("weights rounded from some pass on", Pass(), *(Pass(put(spread=s)) for s in (0.5, 0.0)))(
    functional_head(
        lambda m, g: F.linear(g, (m.text / m.spread).round() * m.spread if m.spread else m.text, m.offset),
        lambda m: (m.text / m.spread).round() * m.spread if m.spread else m.text,
    )
)

SAID = LinearHead(features="body", weight=lambda m: m.scale.exp() * m.text)
row("a head that is said: scale · text", *REDRAWN, options={"head": SAID})(
    functional_head(lambda m, g: m.scale.exp() * torch.einsum("ni,ki->nk", g, m.text), lambda m: m.scale.exp() * m.text)
)
row("a head that is said: no function that is known", *REDRAWN, options={"head": SAID})(
    functional_head(lambda m, g: m.scale.exp() * (g[:, None] * m.text).sum(2) - 2.0, lambda m: m.scale.exp() * m.text)
)
row(
    "a head that is said, and is changed before update",
    Pass(after=lambda m, _: redrawn("text")(m)),
    Pass(after=lambda m, _: redrawn("text", seed=8)(m)),
    options={"head": SAID},
)(functional_head(lambda m, g: m.scale.exp() * g @ m.text.T, lambda m: m.scale.exp() * m.text))
row(
    "a head that is said stops being right",
    Pass(),
    Pass(put(spread=0.5), asks=rf"LinearHead|{MISSED}"),
    Pass(put(spread=0.0)),
    options={"head": SAID},
)(functional_head(lambda m, g: m.scale.exp() * g @ m.noisy().T, lambda m: m.scale.exp() * m.noisy()))
row("a head that is said, a tensor", Pass(), Pass(), options={"head": LinearHead(features="body", weight=text())})(
    functional_head(lambda m, g: F.linear(g, text().to(g.dtype)), lambda m: text().to(m.text.dtype))
)


@row("a functional head takes a layer's place", Pass(), Pass(put(zero_shot=True), asks="run another"), Pass())
class ZeroShot(Net):
    zero_shot = False

    def forward(self, x: Tensor) -> Tensor:
        g = self.body(x)
        return 5 * g @ text().to(g.dtype).T if self.zero_shot else self.head(g)

    def truth(self, x: Tensor) -> Truth:
        return self.body(x), 5 * text().to(x.dtype) if self.zero_shot else self.head.weight


@row("features added to the head's columns", *toggled("straight", True, asks=rf"linear|{MISSED}"))
class Straight(Net):
    """Logits with a skip connection from the features: W gains the unit rows."""

    straight = False

    def forward(self, x: Tensor) -> Tensor:
        g = self.body(x)
        return self.head(g) + g[:, :K] if self.straight else self.head(g)

    def truth(self, x: Tensor) -> Truth:
        return self.body(x), self.head.weight + (torch.eye(K, n, dtype=x.dtype) if self.straight else 0)


@row("a nested model is replaced", Pass(), Pass(lambda m: replace_inner(m), asks="run another"), Pass())
class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Net()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((x - 0.1) / 0.5)

    def truth(self, x: Tensor) -> Truth:
        return self.inner.truth((x - 0.1) / 0.5)


def replace_inner(model: Any) -> None:
    torch.manual_seed(11)
    model.inner = Net()


@row("checkpointing switched on inside", *toggled("saving", True, False))
class Saving(Net):
    saving = False

    def forward(self, x: Tensor) -> Tensor:
        if self.saving:
            return checkpoint(lambda x: self.head(self.body(x)), x, use_reentrant=False)
        return self.head(self.body(x))


def script_head(model: Any) -> None:
    model.head = torch.jit.script(new_linear())


row("the head replaced by TorchScript", Pass(), Pass(script_head, refused="TorchScript"))(Net)
