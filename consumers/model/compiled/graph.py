"""A forest as an ONNX graph of one node, the sum over its trees, run by ONNX Runtime.

https://onnx.ai/onnx/operators/ : in ai.onnx.ml 5 a TreeEnsemble sums doubles, of one value in each leaf; a
TreeEnsembleRegressor has a value for each class there, and answers their sums in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from consumers.model.compiled.form import Matrix
from consumers.model.formats.onnx_graph import opened

MOST_NODES = 500_000
"""Of a larger forest the graph would take too much memory: up to 250 bytes a node, and while it is made 650."""

Sums = Callable[[Matrix], npt.NDArray[Any]]


def nodes_of(forest: Any) -> int:
    """Nodes of all its trees together."""
    return sum(tree.tree_.node_count for tree in forest.estimators_)


def counts_votes(forest: Any) -> bool:
    """Whether each tree of a classifier gives its whole vote to one class: then sums are whole, and exact."""
    trees = [each.tree_ for each in forest.estimators_]
    return all(np.isin(tree.value[tree.children_left < 0], (0.0, 1.0)).all() for tree in trees)


def totals(forest: Any) -> Sums:
    """Rows, shape (rows, features) -> the sums of what its trees answer, shape (rows, classes), or (rows, 1).

    Raises ImportError where onnx or onnxruntime is not installed.
    """
    session, wanted = opened(_graph(forest)), ["sums"]

    def summed(rows: Matrix) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = session.run(wanted, {"rows": rows})[0]
        return found

    return summed


def _graph(forest: Any) -> bytes:
    from onnx import TensorProto, helper
    from onnx.numpy_helper import from_array

    trees = [each.tree_ for each in forest.estimators_]
    if hasattr(forest, "classes_"):
        kind, targets, version, answer = "TreeEnsembleRegressor", len(forest.classes_), 3, TensorProto.FLOAT
        attributes = _of_classes(trees)
    else:
        kind, targets, version, answer = "TreeEnsemble", 1, 5, TensorProto.DOUBLE
        attributes = _of_numbers(trees)
    node = helper.make_node(kind, ["rows"], ["sums"], domain="ai.onnx.ml", n_targets=targets)
    while attributes:  # each of them is large, in every one of its shapes
        name, values = attributes.popitem()
        held = from_array(values) if values.dtype in (np.float64, np.uint8) else values.tolist()
        node.attribute.append(helper.make_attribute(name, held))
    rows = helper.make_tensor_value_info("rows", TensorProto.DOUBLE, [None, forest.n_features_in_])
    sums = helper.make_tensor_value_info("sums", answer, [None, targets])
    graph = helper.make_graph([node], "forest", [rows], [sums])
    content: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("ai.onnx.ml", version)], ir_version=10
    ).SerializeToString()
    return content


def _of_classes(trees: list[Any]) -> dict[str, npt.NDArray[Any]]:
    """TreeEnsembleRegressor: nodes by tree and place in it, and for each leaf the classes that it votes for."""
    places = np.concatenate([np.arange(tree.node_count) for tree in trees])
    numbers = np.repeat(np.arange(len(trees)), [tree.node_count for tree in trees])
    left, right = (np.concatenate([getattr(t, f"children_{side}") for t in trees]) for side in ("left", "right"))
    is_leaf = left < 0
    shares = np.concatenate([tree.value[:, 0, :] for tree in trees])
    voting, classes = np.nonzero(shares * is_leaf[:, np.newaxis])
    features = np.concatenate([tree.feature for tree in trees])
    return {
        "nodes_treeids": numbers,
        "nodes_nodeids": places,
        "nodes_modes": np.array(["BRANCH_LEQ", "LEAF"], object)[is_leaf.astype(np.intp)],
        "nodes_featureids": np.where(is_leaf, 0, features),
        "nodes_values_as_tensor": np.concatenate([tree.threshold for tree in trees]),
        "nodes_truenodeids": np.where(is_leaf, 0, left),
        "nodes_falsenodeids": np.where(is_leaf, 0, right),
        "target_treeids": numbers[voting],
        "target_nodeids": places[voting],
        "target_ids": classes,
        "target_weights_as_tensor": shares[voting, classes],
    }


def _of_numbers(trees: list[Any]) -> dict[str, npt.NDArray[Any]]:
    """TreeEnsemble: branches and leaves each in a row of their own. A tree that is one leaf is a branch to it twice."""
    roots: list[int] = []
    branches: list[tuple[npt.NDArray[Any], ...]] = []
    weights: list[npt.NDArray[np.float64]] = []
    first_branch = first_leaf = 0
    for tree in trees:
        is_leaf = tree.children_left < 0
        at = np.flatnonzero(~is_leaf)
        places = np.where(is_leaf, first_leaf + np.cumsum(is_leaf), first_branch + np.cumsum(~is_leaf)) - 1
        left, right = tree.children_left[at], tree.children_right[at]
        feature, threshold = tree.feature[at], tree.threshold[at]
        if not len(at):
            left = right = feature = np.zeros(1, np.intp)
            threshold = np.zeros(1)
        roots.append(first_branch)
        branches.append((feature, threshold, places[left], is_leaf[left], places[right], is_leaf[right]))
        weights.append(tree.value[is_leaf, 0, 0])
        first_branch += len(left)
        first_leaf += len(weights[-1])
    feature, threshold, *ways = (np.concatenate(parts) for parts in zip(*branches, strict=True))
    names = ("nodes_truenodeids", "nodes_trueleafs", "nodes_falsenodeids", "nodes_falseleafs")
    return {
        "tree_roots": np.array(roots),
        "nodes_featureids": feature,
        "nodes_splits": threshold,
        "nodes_modes": np.zeros(len(feature), np.uint8),  # all of them "less or equal"
        **{name: way.astype(np.int64) for name, way in zip(names, ways, strict=True)},
        "leaf_targetids": np.zeros(first_leaf, np.int64),
        "leaf_weights": np.concatenate(weights),
    }
