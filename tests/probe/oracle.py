"""The paper's measurement once more, in plain float64 loops: written from the paper, importing nothing of the package.

Algorithm 1 (class attribution and C), eqs. 5 to 7 and Section 5.3. Vectors are lists of Python floats.
"""

from __future__ import annotations

import math

Vector = list[float]
Matrix = list[Vector]


def attribution(features: Vector, weight: Matrix, label: int) -> Vector:
    return [g * w for g, w in zip(features, weight[label], strict=True)]


def class_attribution(features: Matrix, weight: Matrix, labels: list[int]) -> list[Vector]:
    rows = []
    for y in range(len(weight)):
        total = [0.0] * len(weight[0])
        count = 0
        for g, label in zip(features, labels, strict=True):
            if label == y:
                total = [t + a for t, a in zip(total, attribution(g, weight, y), strict=True)]
                count += 1
        rows.append([t / count if count else math.nan for t in total])
    return rows


def cosine(a: Vector, b: Vector) -> float:
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    lengths = math.sqrt(math.fsum(x * x for x in a)) * math.sqrt(math.fsum(x * x for x in b))
    return dot / lengths if lengths else math.nan


def correlation_matrix(features: Matrix, weight: Matrix, labels: list[int]) -> Matrix:
    rows = class_attribution(features, weight, labels)
    return [[cosine(a, b) for b in rows] for a in rows]


def cas(matrix: Matrix) -> float:
    total = 0.0
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            if i != j and value > 0:  # also false where the value is NaN
                total += value
    return total


def instance_matrix(features: Matrix, weight: Matrix, labels: list[int], mean: bool = False) -> Matrix:
    rows = [attribution(g, weight, y) for g, y in zip(features, labels, strict=True)]
    classes = len(weight)
    matrix = [[math.nan] * classes for _ in range(classes)]
    for i in range(classes):
        for j in range(classes):
            found = []
            for a, x in enumerate(rows):
                if labels[a] != i:
                    continue
                near = [cosine(x, other) for b, other in enumerate(rows) if labels[b] == j and b != a]
                if near:
                    found += near if mean else [max(near)]
            if found:
                matrix[i][j] = math.fsum(found) / len(found)
    return matrix
