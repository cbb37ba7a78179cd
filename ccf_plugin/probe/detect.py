"""Which layers make the logits, decided from one forward pass: by who made the output, then verified by value."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ccf_plugin.engine.outputs import Choice, Entry, are_probabilities, no_logits, path_name, which_logits
from ccf_plugin.errors import Fault, InputError, some_of
from ccf_plugin.probe.attribution import accumulator_dtype
from ccf_plugin.probe.calls import LayerCall, PassRecord
from ccf_plugin.probe.linear_map import EQUATIONS
from ccf_plugin.probe.plan import Plan
from ccf_plugin.probe.search import Search
from ccf_plugin.probe.tensors import same_memory, version
from ccf_plugin.probe.terms import at_mean, bias_of, link_holds, matrix_of, product
from ccf_plugin.probe.trials import Trials, links_of

_NOT_SEEN = (
    "TorchScript, exported and quantised layers, functions such as F.linear under torch.compile, and code that it made "
    "before the probe was attached (torch._dynamo.reset() drops it) show nothing to hooks"
)
GRAPH_GONE = (
    "expected the graph of the pass for head='gradient', found that it is gone; "
    "call update before loss.backward() and optimizer.step() ({})"
)
_REMEDY = (
    "return the logits of one linear layer, name one by hand with {head='its.name'} or (in Python) "
    "head=LinearHead(features=…, weight=…), or measure a mixture with {head='gradient'}"
)


def detect_in_output(record: PassRecord, chosen: Choice | None = None) -> Plan:
    """The plan of the entry of the output that a head makes.

    Args:
        record: the pass.
        chosen: the index or key of the output that the user named.

    Raises:
        InputError: no entry is made by one, or several are.
    """
    if not record.entries:
        remedy = "name the classification head by hand with {head='its.name'}"
        raise InputError(no_logits(record.described, chosen, remedy))
    heads: list[tuple[Entry, Plan]] = []
    unexplained: list[Entry] = []
    refusal: InputError | None = None
    for entry, origin in zip(record.entries, record.origins, strict=True):
        if any(same_memory(entry.tensor, other.tensor) for other, _ in heads):
            continue
        try:
            heads.append((entry, detect_head(record, entry.logits, entry.path, origin)))
        except InputError as error:
            refusal = refusal or error
            unexplained.append(entry)
    if heads:
        # what the head reads is no answer of the model's; anything else beside its logits may be
        others = [entry for entry in unexplained if entry.logits.shape[1] > 1 and not _is_read(entry, heads, record)]
        if len(heads) + len(others) > 1:
            made = f"{len(heads)} of which linear layers make" if others else "that linear layers make"
            entries = [*(entry for entry, _ in heads), *others]
            raise InputError(which_logits(entries, f" ({made})", ", or name their layer with {head='its.name'}"))
        return heads[0][1]
    raise refusal or InputError("expected logits, found none")


def _is_read(entry: Entry, heads: Sequence[tuple[Entry, Plan]], record: PassRecord) -> bool:
    """Whether an entry of the output is what one of the heads reads: features."""
    names = {link.name for _, plan in heads for term in plan.terms for link in term.links}
    read = [call.positions() for call in record.calls if call.name in names and call.inputs is not None]
    shape = (len(entry.logits), 1, entry.logits.shape[1])
    return any(rows.shape == shape and torch.equal(rows[:, 0], entry.logits) for rows in read)


def detect_head(
    record: PassRecord, logits: Tensor, path: tuple[int | str, ...] | None = (), maker: int | None = None
) -> Plan:
    """The plan whose g Wᵀ + a constant row gives the logits.

    Args:
        record: the pass.
        logits: (N, K) float.
        path: the entry of the output that they are.
        maker: the serial of the run whose output they are, or are computed from, where one is known.

    Raises:
        InputError: there is none; the message names the layers considered and why none qualifies.
    """
    wanted = _checked(logits)
    trials = Trials(record, wanted, path, maker)
    plan = Search(trials).find()
    if plan is None:
        raise InputError(_refusal(record, trials, wanted))
    return plan


def gradient_members(record: PassRecord, logits: Tensor) -> list[LayerCall]:
    """The heads of a mixture's members: the layers of K outputs from which the logits follow directly.

    Args:
        record: the pass, whose runs keep their graph.
        logits: (N, K) float, with its graph.

    Raises:
        InputError: there is none, or the pass kept no graph.
    """
    _checked(logits)
    layers = [call for call in record.calls if not call.is_function]
    members = _members_among(layers, logits) or _members_among(record.calls, logits)
    if not members:
        raise InputError(
            "expected a pass with gradients through a layer of K outputs for head='gradient', found none; "
            "run it outside torch.no_grad, on inputs or weights that require gradients"
        )
    return members


def _members_among(calls: Sequence[LayerCall], logits: Tensor) -> list[LayerCall]:
    rows, classes = logits.shape
    sized = [(call, call.inputs) for call in calls if any(links_of(call, classes, rows))]
    # what reads images without a gradient is a member too, which is refused later
    ways = [(call, call.output if inputs is None or not inputs.requires_grad else inputs) for call, inputs in sized]
    candidates = [(call, way) for call, way in ways if isinstance(way, Tensor) and way.requires_grad]
    if not candidates or not logits.requires_grad:
        return []
    members = []
    try:
        for (call, inputs), reached in zip(candidates, _depends(logits, [i for _, i in candidates]), strict=True):
            later = [other for _, other in candidates if other is not inputs]
            hidden = isinstance(call.output, Tensor) and any(_depends(other, [call.output])[0] for other in later)
            if reached and not hidden:
                members.append(call)
    except RuntimeError as error:
        raise InputError(GRAPH_GONE.format(str(error).splitlines()[0])) from error
    return members


def _depends(result: Tensor, sources: list[Tensor]) -> list[bool]:
    gradients = torch.autograd.grad(result.sum(), sources, retain_graph=True, allow_unused=True)
    return [gradient is not None for gradient in gradients]


def _checked(logits: Tensor) -> Tensor:
    if logits.shape[1] < 2:
        raise InputError(
            f"expected logits of 2 or more classes, found an output of shape {tuple(logits.shape)}; "
            "CrossClassProbe measures classifiers (a single logit z can be written as two: torch.cat([-z, z], 1))"
        )
    wanted = logits.detach().to(accumulator_dtype(logits.device))
    if not torch.isfinite(wanted).all():
        masked = (wanted == -torch.inf).any() and not (wanted.isnan() | (wanted == torch.inf)).any()
        raise InputError(
            Fault(
                "",
                "finite logits",
                "a mask (logits of -inf)",
                "probe the part of the model before the mask, or name its layer with {head='its.name'}",
            )
            if masked
            else "expected finite logits, found NaN or infinity; check weights and inputs"
        )
    return wanted


def _refusal(record: PassRecord, trials: Trials, wanted: Tensor) -> Fault:
    classes = wanted.shape[1]
    where = path_name(trials.path or ())
    entry = f" (output{where})" if where else ""
    if not wanted.any():
        found = f"all zeros{entry} that no layer gave as they are (the head's weights are zero)"
        return Fault("", "logits that tell layers apart", found, "load or train weights before the first probed pass")
    if trials.errors:
        listed = ", ".join(
            f"{_layer(name)} (off by {error:.0e} of the largest logit)" for name, error in trials.errors.items()
        )
        reason = f"none among {listed}{_reason(record, trials, wanted)}"
    elif record.calls:
        reason = (
            f"none: no layer and no matrix product that ran has a weight for {classes} classes ({_NOT_SEEN})"
            f"{_reason(record, trials, wanted)}"
        )
    else:
        reason = f"that no layer with a matrix ran ({_NOT_SEEN})"
    rows = {len(c.inputs) for c in record.calls if c.inputs is not None and any(links_of(c, classes, len(c.inputs)))}
    if others := sorted(rows - {len(wanted)}):
        reason += (
            f"; a layer ran on {others[0]} rows, where the logits have {len(wanted)} (probe the module inside, which "
            "sees them together)"
        )
    if trials.dropped:
        reason += (
            f"; the features of {some_of([_layer(name) for name in trials.dropped])} took too much memory to be kept "
            "through the first pass: run another, in which less is kept, then update"
        )
    remedy = _REMEDY
    if not record.calls:
        remedy = f"probe the eager module that such code was made from, before it is compiled; otherwise {_REMEDY}"
    return Fault("", f"a layer whose g Wᵀ + b is the logits{entry}", reason, remedy)


def _layer(name: str) -> str:
    return repr(name) if name else "the model itself"


def _changes_by_sample(record: PassRecord, wanted: Tensor) -> str:
    """Whether the logits are the layers' outputs with factors that change from sample to sample."""
    outputs = []
    for call in record.calls:
        link = next(links_of(call, wanted.shape[1], len(wanted)), None)
        if link is not None and not call.is_function:
            made = at_mean(product(call.positions(), matrix_of(link, call), wanted.dtype))
            bias = bias_of(call, wanted.shape[1])
            outputs.append(made if bias is None else made + bias.to(wanted.dtype))
    if not 0 < len(outputs) < wanted.shape[1] - 1:
        return ""
    columns = torch.stack(outputs, 2)
    factors = torch.linalg.lstsq(columns, wanted.unsqueeze(2), driver=None if wanted.is_cuda else "gelsd").solution
    if bool(((columns @ factors).squeeze(2) - wanted).abs().amax() > 1e-4 * wanted.abs().amax()):
        return ""
    if len(outputs) == 1:
        return "; a scale after the layer changes from sample to sample"
    return "; the layers' shares change from sample to sample (a gate, or a mixture of experts)"


def _do_not_fit(record: PassRecord, trials: Trials) -> list[str]:
    """Layers whose output, which nothing changed, is not their weight times their input: one of these was changed."""
    samples, classes = trials.wanted.shape
    return [
        _layer(call.name)
        for call in record.calls
        if call.name in trials.errors and call.kind in ("Linear", "Conv1d", "Conv2d") and not version(call.output)
        if not any(link_holds(link, call) for link in links_of(call, classes, samples))
    ]


def _reason(record: PassRecord, trials: Trials, wanted: Tensor) -> str:
    changed = [_layer(call.name) for call in record.calls if call.name in trials.errors and call.is_changed()]
    if changed:
        return (
            f"; the model changed in place what {some_of(changed)} had read, after it ran: run another pass, in which "
            "that is copied as the layer runs, then update"
        )
    if are_probabilities(wanted):
        return "; the output looks like probabilities, not logits"
    if bool(((wanted.exp().sum(1) - 1).abs() < 1e-3).all()):
        return "; the output looks like log-probabilities (a mixture, or log_softmax)"
    if record.distances:
        return (
            f"; {' and '.join(record.distances)} compares with prototypes, which is no matrix product (a cosine "
            "head is one as F.linear(F.normalize(g), F.normalize(W)))"
        )
    if len(wanted) > 1 and (by_sample := _changes_by_sample(record, wanted)):
        return by_sample
    spans = (wanted - wanted[:1]).abs().amax(0)
    if len(wanted) > 1 and bool((spans == 0).any()) and not bool((spans == 0).all()):
        return "; some classes' logits are the same for all samples (a mask, which must stand after what is probed)"
    if trials.is_constant:
        return "; the logits are the same for all samples, which tells no layers apart"
    if (len(wanted) - 1) * wanted.shape[1] < EQUATIONS or (len(wanted) <= EQUATIONS + 1 and not trials.errors):
        return "; so few samples show neither a factor nor a constant row: run a pass of more, then update"
    if trials.too_alike:
        return (
            "; the features of this batch vary in so few ways that other heads would explain its logits as well: run a "
            "pass of more images, and of others, then update"
        )
    if trials.several_positions:
        return "; a layer runs at several positions, and neither one of them nor a mean of them is the output"
    if unfit := _do_not_fit(record, trials):
        return (
            f"; the model changed the weights of {some_of(unfit)} in the pass, after it ran: run another pass, in "
            "which they are copied as the layer runs, then update"
        )
    if len(trials.errors) > 1:
        return "; nor do they combine linearly"
    return ""
