"""ONNX graphs: what onnxruntime answers when it is asked directly, and the graphs that can't take rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from consumers.model.formats import UnloadableModel, load_artifact
from consumers.model.formats.onnx_graph import OnnxGraph
from consumers.model.model import LoadedModel, PredictFailed, load_model, rows_of
from tests.unit.test_model import X, Y, signature

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

FLOAT, INT64, BOOL, STRING = (getattr(onnx.TensorProto, name) for name in ("FLOAT", "INT64", "BOOL", "STRING"))


def graph(
    nodes: Sequence[tuple[str, Sequence[str], Sequence[str]]],
    inputs: Sequence[tuple[str, int, Sequence[int | str]]],
    outputs: Sequence[tuple[str, int, Sequence[int | str]]],
    weights: Sequence[Any] = (),
) -> bytes:
    """A graph of (operator, inputs, outputs); the axis of what needs one is 1."""
    made = [
        onnx.helper.make_node(kind, into, out, **({"axis": 1} if kind == "Concat" else {})) for kind, into, out in nodes
    ]
    ends = [[onnx.helper.make_tensor_value_info(*each) for each in side] for side in (inputs, outputs)]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(made, "g", *ends, list(weights)),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=9,
    )
    content: bytes = model.SerializeToString()
    return content


def identity(kind: int, shape: Sequence[int | str] = ("n", 2)) -> bytes:
    return graph([("Identity", ["x"], ["y"])], [("x", kind, shape)], [("y", kind, shape)])


def converted(estimator: Any, **options: Any) -> bytes:
    from skl2onnx import to_onnx

    content: bytes = to_onnx(estimator, X[:1].astype(np.float32), **options).SerializeToString()
    return content


def directly(content: bytes, output: str, rows: npt.NDArray[Any]) -> Any:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (answer,) = session.run([output], {session.get_inputs()[0].name: rows})
    return answer


def loaded(content: bytes, features: list[dict[str, Any]] | None = None, **changes: Any) -> LoadedModel:
    return load_model(signature(features, **changes), {"model.onnx": content})


def refusal(content: bytes, features: list[dict[str, Any]] | None = None, **changes: Any) -> str:
    with pytest.raises(UnloadableModel) as caught:
        loaded(content, features, **changes).warm()
    return str(caught.value)


def numbers(*kinds: str) -> list[dict[str, Any]]:
    return [{"name": f"f{place}", "type": kind} for place, kind in enumerate(kinds)]


# ---------------------------------------------------------------- answers


def test_label_and_probabilities_of_a_zipmap_are_what_onnxruntime_answers() -> None:
    content = converted(LogisticRegression().fit(X, Y))
    outputs = [
        {"name": "p", "call": "predict_proba", "class": 1},
        {"name": "all", "call": "predict_proba"},
        {"name": "l"},
    ]
    model = loaded(content, outputs=outputs)
    assert model.outputs == (("p", "float"), ("all.0", "float"), ("all.1", "float"), ("l", "int"))
    p, _, both, label = model.predict(X)
    rows = X.astype(np.float32)
    expected = [row[1] for row in directly(content, "output_probability", rows)]
    assert expected == list(p.values) == list(both.values)
    assert list(label.values) == directly(content, "output_label", rows).tolist()
    assert model.engine == f"onnxruntime {onnxruntime.__version__}"


def test_probabilities_without_a_zipmap_are_taken_by_column() -> None:
    content = converted(LogisticRegression().fit(X, Y), options={"zipmap": False})
    (p,) = loaded(content, outputs=[{"name": "p", "call": "predict_proba", "column": 1}]).predict(X)
    np.testing.assert_array_equal(directly(content, "probabilities", X.astype(np.float32))[:, 1], p.values)
    told = refusal(content, outputs=[{"name": "p", "call": "predict_proba", "class": 1}])
    assert told == "the output p names a class, and the model has no classes_: use column"


def test_each_feature_may_be_an_input_of_its_own_type() -> None:
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType

    frame = pd.DataFrame(
        {
            "town": pd.Series(["Ulm", "Bonn", "Köln"] * 30, dtype=object),
            "rooms": np.arange(90) % 4,
            "area": np.linspace(20.0, 200.0, 90),
        }
    )
    columns = make_column_transformer((OneHotEncoder(), ["town"]), (StandardScaler(), ["rooms", "area"]))
    estimator = make_pipeline(columns, LogisticRegression()).fit(frame, np.where(frame["area"] > 90, "dear", "cheap"))
    types = {"town": StringTensorType, "rooms": Int64TensorType, "area": FloatTensorType}
    content = to_onnx(estimator, initial_types=[(name, kind([None, 1])) for name, kind in types.items()])
    features = [
        {"name": "town", "type": "string", "example": "Ulm"},
        {"name": "rooms", "type": "int"},
        {"name": "area", "type": "float"},
    ]
    model = loaded(content.SerializeToString(), features)
    rows = rows_of(model.signature, [list(row) for row in frame.itertuples(index=False)])
    assert estimator.predict(frame).tolist() == list(model.predict(rows)[0].values)
    features[0]["name"] = "place"
    assert refusal(content.SerializeToString(), features) == (
        "feature 0 is 'place' in the signature and 'town' in the OnnxGraph"
    )


def test_outputs_are_chosen_by_name_or_position_and_the_first_otherwise() -> None:
    nodes = [("Neg", ["x"], ["minus"]), ("Exp", ["x"], ["power"])]
    content = graph(nodes, [("x", FLOAT, ["n", 2])], [("minus", FLOAT, ["n", 2]), ("power", FLOAT, ["n", 2])])
    outputs = [{"name": "output_1", "column": 0}, {"name": "minus", "column": 1}, {"name": "power"}, {"name": "score"}]
    columns = {column.name: column.values for column in loaded(content, outputs=outputs).predict(X)}
    rows = X.astype(np.float32)
    np.testing.assert_array_equal(
        np.column_stack([columns["power.0"], columns["power.1"]]), directly(content, "power", rows)
    )
    np.testing.assert_array_equal(columns["output_1"], columns["power.0"])
    np.testing.assert_array_equal(columns["minus"], -rows[:, 1])
    np.testing.assert_array_equal(columns["score.0"], -rows[:, 0])


@pytest.mark.parametrize("call", ["predict_proba", "decision_function"])
def test_a_call_that_the_graph_does_not_offer_is_refused(call: str) -> None:
    assert refusal(identity(FLOAT), outputs=[{"name": "p", "call": call}]) == (
        f"an output asks for {call}, and the graph offers predict; predict also answers any of its outputs where the "
        "signature's is called alike: y"
    )


def test_a_skops_or_pickled_transform_stands_before_a_graph_and_a_graph_before_a_pickle() -> None:
    skops = pytest.importorskip("skops.io")
    scaler, estimator = StandardScaler().fit(X), LinearRegression().fit(X, X @ [0.5, -2.0])
    content = converted(estimator)
    model = load_model(signature(transforms=["s.skops"]), {"s.skops": skops.dumps(scaler), "m.onnx": content})
    expected = directly(content, "variable", scaler.transform(X).astype(np.float32))
    np.testing.assert_array_equal(expected[:, 0], model.predict(X)[0].values)

    scaling = converted(scaler)
    files = {"s.onnx": scaling, "m.skops": skops.dumps(estimator)}
    turned = load_model(signature(transforms=["s.onnx"], model_file="m.skops"), files)
    expected = estimator.predict(directly(scaling, "variable", X.astype(np.float32)))
    np.testing.assert_array_equal(expected, turned.predict(X)[0].values)


def test_golden_examples_hold_a_graph_to_the_last_bit() -> None:
    content = converted(LinearRegression().fit(X, X @ [0.1, 0.7]))
    exact = directly(content, "variable", np.array([[0.5, -1.0]], np.float32)).item()

    def golden(value: float) -> list[dict[str, object]]:
        return [{"inputs": [0.5, -1.0], "outputs": {"prediction": value}}]

    loaded(content, golden=golden(exact)).warm()
    assert "golden[0].outputs.prediction: expected" in refusal(content, golden=golden(float(np.nextafter(exact, 1))))


# ---------------------------------------------------------------- types and shapes


def test_values_are_rounded_to_float32_where_the_graph_takes_that_and_only_there() -> None:
    outputs = [{"name": "y", "column": 0}]
    rows = np.array([[0.1, 16777217.0]])
    assert loaded(identity(FLOAT), outputs=outputs).predict(rows)[0].values[0] == float(np.float32(0.1)) != 0.1
    double = identity(onnx.TensorProto.DOUBLE)
    assert loaded(double, outputs=outputs).predict(rows)[0].values[0] == 0.1


def test_a_number_beyond_float32_fails_its_prediction_instead_of_becoming_infinite() -> None:
    model = loaded(identity(FLOAT))
    with pytest.raises(PredictFailed, match="the input x is float32, which can't hold a value that came"):
        model.predict(np.array([[1e39, 1.0]]))
    assert np.isnan(model.predict(np.array([[np.nan, 1.0]]))[0].values[0])


def test_whole_numbers_and_booleans_are_never_rounded() -> None:
    model = loaded(identity(INT64), numbers("int", "bool"))
    assert [column.values[0] for column in model.predict(np.array([[2.0**53, 1.0]]))] == [2**53, 1]
    assert refusal(identity(INT64), numbers("int", "float")) == (
        "feature 1, f1, is of type float in the signature; the OnnxGraph takes int there"
    )
    assert "the OnnxGraph takes bool there" in refusal(identity(BOOL), numbers("bool", "int"))
    # What a transform before the graph makes of whole numbers.
    with pytest.raises(PredictFailed, match="int64, which can't hold a value that came"):
        model.predict(np.array([[2.5, 1.0]]))
    with pytest.raises(PredictFailed, match="int32, which can't hold a value that came"):
        loaded(identity(onnx.TensorProto.INT32), numbers("int", "int")).predict(np.array([[2.0**40, 0.0]]))


def test_strings_come_from_a_dataframe_alone() -> None:
    content = identity(STRING)
    model = loaded(content, numbers("string", "string"))
    assert [column.values for column in model.predict([["é", "b"], ["", "d"]])] == [["é", "b"], ["", "d"]]
    assert "the OnnxGraph takes string there" in refusal(content, numbers("float", "float"))
    with pytest.raises(PredictFailed, match="the input x takes strings, got None"):
        model.predict([[None], ["d"]])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lambda: identity(FLOAT, [1, 2]), "the input x takes 1 rows and no other number; export it with a dynamic"),
        (lambda: identity(FLOAT, ["n", 2, 2]), "the input x has 3 dimensions; expected rows x features"),
        (lambda: identity(onnx.TensorProto.BFLOAT16), "the input x is a tensor(bfloat16); expected"),
        (lambda: identity(FLOAT, ["n", 3]), "the signature has 2 features; OnnxGraph was fitted on 3"),
        (lambda: identity(FLOAT)[:-5], "can't be loaded: InvalidProtobuf"),
        (lambda: b"", "model.onnx (0 bytes) can't be loaded: "),
        (lambda: b"\x80\x04K\x01.", "; it looks like a pickle"),
    ],
    ids=["one row alone", "three dimensions", "bfloat16", "width", "truncated", "empty", "pickle"],
)
def test_a_graph_that_can_not_take_the_rows_is_refused(content: Any, says: str) -> None:
    assert says in refusal(content())


def test_several_matrices_share_the_features_in_their_order() -> None:
    content = graph(
        [("Concat", ["b", "a"], ["y"])],
        [("a", FLOAT, ["n", 1]), ("b", FLOAT, ["n", 2])],
        [("y", FLOAT, ["n", 3])],
    )
    model = loaded(content, numbers("float", "float", "float"))
    assert [column.values[0] for column in model.predict(np.array([[1.0, 2.0, 3.0]]))] == [2.0, 3.0, 1.0]
    with pytest.raises(PredictFailed, match="got 4 columns; its inputs take 3"):
        model.predict(np.zeros((1, 4)))


# ---------------------------------------------------------------- weights outside, threads


def outside(location: str) -> bytes:
    """y = x W, where W is in a file of its own."""
    weights = onnx.numpy_helper.from_array(np.array([[1, 10], [100, 1000]], np.float32), "w")
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        weights.external_data.add(key=key, value=value)
    return graph([("MatMul", ["x", "w"], ["y"])], [("x", FLOAT, ["n", 2])], [("y", FLOAT, ["n", 2])], [weights])


WEIGHTS = np.array([[1, 10], [100, 1000]], np.float32).tobytes()


def test_weights_in_a_file_beside_the_graph_are_taken_from_the_version() -> None:
    files = {"m.onnx": outside("w.bin"), "w.bin": WEIGHTS}
    columns = load_model(signature(model_file="m.onnx"), files).predict(np.array([[1.0, 2.0]]))
    assert [column.values[0] for column in columns] == [201.0, 2010.0]


@pytest.mark.parametrize("beside", [{}, {"other.bin": WEIGHTS}], ids=["nothing beside", "another beside"])
@pytest.mark.parametrize("location", ["w.bin", "../w.bin", "/{absolute}/w.bin"])
def test_a_graph_reads_no_file_of_the_machine(
    location: str, beside: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for folder in (tmp_path, tmp_path / "here"):
        (folder / "w.bin").write_bytes(WEIGHTS)
    content = outside(location.replace("/{absolute}", str(tmp_path)))
    with pytest.raises(UnloadableModel, match=r"m\.onnx \(.* bytes\) can't be loaded"):
        load_model(signature(model_file="m.onnx"), {"m.onnx": content, **beside})


def test_a_graph_runs_on_one_thread() -> None:
    program, _ = load_artifact("m.onnx", identity(FLOAT))
    assert isinstance(program, OnnxGraph)
    options = program._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert program._session.get_providers() == ["CPUExecutionProvider"]
