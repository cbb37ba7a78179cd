"""A result as people meet it: in one line, in a notebook, in a data frame, and whether two are the same."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import fields
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from ccf_plugin.errors import Fault, InputError, counted, missing_extra
from ccf_plugin.threat import threat_label

if TYPE_CHECKING:
    import pandas as pd

    from ccf_plugin.probe.result import CrossClassResult

# By chance, in words (``probe.null``).
PERMUTED = "with the entries of each class attribution permuted"
FRAMES = ("matrix", "classes", "pairs")


def accuracies(result: CrossClassResult) -> dict[str, str]:
    """The accuracies that were measured, by their labels, in percent; RA names its attack."""
    robust = f"RA ({threat_label(result.robust_threat)})" if result.robust_threat else "RA"
    known = {robust: result.robust_accuracy, "clean accuracy": result.clean_accuracy, "accuracy": result.accuracy}
    return {label: f"{value:.1%}" for label, value in known.items() if value is not None}


def described_data(data: Mapping[str, Any]) -> str:
    """A result's images in words: "1000 test images of cifar10, 3×32×32"."""
    known = conditions_of_images(data)
    size = f", {known['input size']}" if "input size" in known else ""
    smaller = f", downscaled by {known['downscale']}" if known["downscale"] != 1 else ""
    return f"{counted(data['count'], data['split'] + ' image')} of {data['name']}{size}{smaller}"


def conditions_of_images(data: Mapping[str, Any]) -> dict[str, Any]:
    """What two results' images must agree in beside their number, as far as it is known, by the words of messages.

    Results of earlier versions say nothing of the input size.
    """
    known = {name: data[key] for name, key in (("data", "name"), ("split", "split")) if key in data}
    known["downscale"] = data.get("downscale", 1)
    return known if data.get("input_size") is None else {**known, "input size": size_in_words(data["input_size"])}


def size_in_words(size: Sequence[int]) -> str:
    """``"3×32×32"`` for (3, 32, 32)."""
    return "×".join(map(str, size))


def title(result: CrossClassResult, *, instances: bool = False) -> str:
    """The accuracy (RA with its attack where the images were adversarial) and CAS in one line."""
    number = f"I-CAS = {result.instance_cas:.1f}" if instances else f"CAS = {result.cas:.1f}"
    measured = [f"{label} = {value}" for label, value in accuracies(result).items()]
    return ", ".join([*measured[:1], number])


def in_one_line(result: CrossClassResult) -> str:
    """The class's name, what was measured on how many images, and the figures; no arrays."""
    classes, features = result.class_attribution.shape
    facts = [f"model={result.model!r}"] if result.model is not None else []
    facts += [f"classes={classes}", f"features={features}", f"samples={int(result.counts.sum())}"]
    facts += [f"{label}={value}" for label, value in accuracies(result).items()]
    facts.append(f"CAS={result.cas:.2f} of {result.most_cas}")
    facts += [] if result.instance_cas is None else [f"I-CAS={result.instance_cas:.2f}"]
    return f"{type(result).__name__}({', '.join(facts)})"


def as_html(result: CrossClassResult) -> str:
    """A table of the figures and the picture of C beside it, for notebooks; without matplotlib, the table alone."""
    classes, features = result.class_attribution.shape
    data, head, null, size = result.data, result.head, result.null, counted(features, "feature")
    rows = {
        "model": result.model,
        "data": None if data is None else described_data(data),
        "head": ("" if head is None else f"{head.name} ({head.kind}), ") + f"{classes} classes × {size}",
        **accuracies(result),
        "CAS": f"{result.cas:.2f} of {result.most_cas}",
        "CAS by chance": None if np.isnan(null.cas_mean) else f"{null.cas_mean:.2f} ± {null.cas_sd:.2f}, {PERMUTED}",
        "I-CAS": None if result.instance_cas is None else f"{result.instance_cas:.2f}",
        "strongest pairs": ", ".join(f"{a} – {b} {value:.2f}" for a, b, value in result.top_pairs(3)) or None,
        "left out": result.left_out or None,
    }
    cells = "".join(
        f"<tr><th style='text-align:left'>{escape(label)}</th><td style='text-align:left'>{escape(value)}</td></tr>"
        for label, value in rows.items()
        if value is not None
    )
    return f"<div style='display:flex;gap:1em;align-items:center'><table>{cells}</table>{_picture(result)}</div>"


def _picture(result: CrossClassResult) -> str:
    try:
        from ccf_plugin.drawing import drop_figure, figure_bytes, figure_of, square_axes
    except ImportError:
        return ""
    figure = figure_of(result.plot(square_axes(4.0)))
    image = b64encode(figure_bytes(figure, dpi=100)).decode()
    drop_figure(figure)
    return f"<img width='400' alt='C, {escape(title(result))}' src='data:image/png;base64,{image}'>"


def as_frame(result: CrossClassResult, what: str) -> pd.DataFrame:
    """See `CrossClassResult.to_pandas`."""
    if what not in FRAMES:
        raise InputError(Fault("what", f"one of {', '.join(FRAMES)}", repr(what)))
    try:
        import pandas as pd
    except ImportError as error:
        raise missing_extra("to_pandas", "pandas", "pandas") from error
    names = list(result.names)
    if what == "matrix":
        return pd.DataFrame(result.matrix, index=pd.Index(names, name="class"), columns=names)
    columns: dict[str, Any]
    if what == "classes":
        columns = {
            "samples": result.counts,
            "accuracy": result.class_accuracy,
            "clean_accuracy": result.class_accuracy_clean,
            "length": result.lengths,
            "cas": np.nansum(result.pair_contributions(), axis=1),
        }
        index = pd.Index(names, name="class")
    else:
        rows, others = np.nonzero(~np.eye(len(names), dtype=bool))
        confusion = result.confusion
        columns = {
            "c": result.matrix[rows, others],
            "c_instances": None if result.instance_matrix is None else result.instance_matrix[rows, others],
            "cas": result.pair_contributions()[rows, others],
            "confused": None if confusion is None else confusion[rows, others],
        }
        index = pd.MultiIndex.from_arrays(
            [[names[i] for i in rows], [names[j] for j in others]], names=("class", "other")
        )
    return pd.DataFrame({name: values for name, values in columns.items() if values is not None}, index=index)


def are_equal(first: CrossClassResult, second: CrossClassResult) -> bool:
    """Whether all fields are the same; NaN is the same as NaN."""
    names = [field.name for field in fields(first) if field.compare]
    return all(_same(getattr(first, name), getattr(second, name)) for name in names)


def _same(one: Any, other: Any) -> bool:
    if not isinstance(one, np.ndarray) or not isinstance(other, np.ndarray):
        return one is other or (type(one) is type(other) and bool(one == other))
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
