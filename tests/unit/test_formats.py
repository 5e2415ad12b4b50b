"""Files without a pickle in them, XGBoost's own, LightGBM's pickles, and libraries that are not there."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from consumers.model.formats import FORMATS, UnloadableModel, archive, load_artifact
from consumers.model.model import load_model
from consumers.model.runtime import runtime
from contract.signature import parse_signature
from millstream.draft import draft
from tests.odd_models import TextModel
from tests.unit.test_model import X, Y, dumped, signature

PROBABILITY = [{"name": "p", "call": "predict_proba", "class": 1}, {"name": "label"}]


def refusal(name: str, content: bytes) -> str:
    with pytest.raises(UnloadableModel) as caught:
        load_artifact(name, content)
    return str(caught.value)


def archived(*members: tuple[str, bytes]) -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members:
            opened.writestr(name, content)
    return file.getvalue()


# ---------------------------------------------------------------- skops


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(X, Y)


@pytest.fixture(scope="module")
def skops_file(pipeline: Any) -> bytes:
    content: bytes = pytest.importorskip("skops.io").dumps(pipeline)
    return content


def test_a_skops_file_answers_what_its_estimator_answers(pipeline: Any, skops_file: bytes) -> None:
    model = load_model(signature(outputs=PROBABILITY), {"model.skops": memoryview(skops_file)})
    p, label = model.predict(X)
    np.testing.assert_array_equal(pipeline.predict_proba(X)[:, 1], p.values)
    np.testing.assert_array_equal(pipeline.predict(X), label.values)
    assert model.engine.startswith("sklearn ")


def test_types_that_skops_does_not_trust_are_refused_by_name(skops_file: bytes) -> None:
    import skops.io

    assert refusal("m.skops", skops.io.dumps(TextModel(3))) == (
        "m.skops holds types that skops does not trust, so none was loaded: tests.odd_models.TextModel"
    )
    with zipfile.ZipFile(BytesIO(skops_file)) as opened:
        members = {name: opened.read(name) for name in opened.namelist()}
    schema = json.loads(members["schema.json"])
    schema |= {"__class__": "Popen", "__module__": "subprocess"}
    members["schema.json"] = json.dumps(schema).encode()
    assert "subprocess.Popen" in refusal("m.skops", archived(*members.items()))


def test_a_skops_file_that_is_cut_short_or_something_else_is_refused(skops_file: bytes) -> None:
    for length in (0, 2, 100, len(skops_file) // 2, len(skops_file) - 1):
        assert refusal("m.skops", skops_file[:length]).endswith("can't be loaded: it is no whole zip archive")
    assert "has no schema.json in it" in refusal("m.skops", archived(("a", b"")))
    assert "can't be loaded: " in refusal("m.skops", archived(("schema.json", b"[")))
    assert "holds no TorchScript" in refusal("m.pt", skops_file) or "millstream[torch]" in refusal("m.pt", skops_file)
    assert "it looks like a zip archive" in refusal("m.pkl", skops_file)


@pytest.mark.parametrize("suffix", [".skops", ".pt"])
def test_an_archive_that_unpacks_without_bound_is_refused_before_it_is_unpacked(
    suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "FREE_BYTES", 1 << 20)
    zeros = bytes(3 << 20)
    for bomb in (archived(("schema.json", zeros)), archived(("a.npz", archived(("data.npy", zeros))))):
        told = refusal(f"m{suffix}", bomb)
        assert f"m{suffix} ({len(bomb):,} bytes) would unpack to 3,14" in told
        assert told.endswith("expected at most 100 times its size")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b", "..\\b", "C:\\b"])
@pytest.mark.parametrize("suffix", [".skops", ".pt"])
def test_names_that_leave_the_archive_are_refused(suffix: str, name: str) -> None:
    assert refusal(f"m{suffix}", archived(("schema.json", b"{}"), (name, b"x"))) == (
        f"m{suffix} holds {name!r}; expected names inside the archive"
    )


# ---------------------------------------------------------------- XGBoost and LightGBM


@pytest.mark.parametrize("form", ["json", "ubj"])
@pytest.mark.parametrize("kind", ["XGBClassifier", "XGBRegressor", "XGBRFRegressor"])
def test_an_xgboost_file_answers_what_its_estimator_answers(kind: str, form: str) -> None:
    xgboost = pytest.importorskip("xgboost")
    estimator = getattr(xgboost, kind)(n_estimators=4, max_depth=3, n_jobs=2).fit(X, Y)
    content = bytes(estimator.get_booster().save_raw(form))
    asked = PROBABILITY if kind == "XGBClassifier" else PROBABILITY[1:]
    files = {f"model.{form}": content, "config.json": b"{}", "signature.json": b"{}"}
    model = load_model(signature(outputs=asked, model_file=f"model.{form}"), files)
    columns = {column.name: column.values for column in model.predict(X)}
    np.testing.assert_array_equal(estimator.predict(X), columns["label"])
    if kind == "XGBClassifier":
        np.testing.assert_array_equal(estimator.predict_proba(X)[:, 1].astype(np.float64), columns["p"])
    assert model.engine == f"xgboost {xgboost.__version__}"
    loaded, _ = load_artifact(f"model.{form}", content)
    config = json.loads(loaded.get_booster().save_config())["learner"]["generic_param"]
    assert (config["nthread"], config["device"]) == ("1", "cpu")


REFUSED = """
import sys
from consumers.model.formats import UnloadableModel, load_artifact
try:
    load_artifact(sys.argv[1], sys.stdin.buffer.read())
except UnloadableModel as refused:
    print(refused)
"""


@pytest.mark.parametrize("form", ["json", "ubj"])
def test_an_xgboost_file_that_was_cut_is_refused(form: str) -> None:
    """In a process of its own: once in many thousand times the library dies of one, which trials are confined for."""
    xgboost = pytest.importorskip("xgboost")
    estimator = xgboost.XGBClassifier(n_estimators=4, max_depth=3, n_jobs=2).fit(X, Y)
    content = bytes(estimator.get_booster().save_raw(form))
    length = len(content) // 2 if form == "json" else len(content) - 1
    name = f"model.{form}"
    command = [sys.executable, "-c", REFUSED, name]
    ended = subprocess.run(command, input=content[:length], capture_output=True, timeout=60)
    if ended.returncode >= 0:
        assert f"{name} ({length:,} bytes) can't be loaded: XGBoostError: " in ended.stdout.decode()


def test_a_class_per_label_of_several_and_names_from_a_dataframe() -> None:
    xgboost = pytest.importorskip("xgboost")
    estimator = xgboost.XGBClassifier(n_estimators=3).fit(pd.DataFrame(X, columns=["a", "b"]), np.arange(300) % 3)
    content = bytes(estimator.get_booster().save_raw("ubj"))
    model = load_model(signature(outputs=[{"name": "p", "call": "predict_proba"}]), {"m.ubj": content})
    got = np.column_stack([column.values for column in model.predict(X)])
    np.testing.assert_array_equal(estimator.predict_proba(X), got)
    named = [{"name": "a", "type": "float"}, {"name": "z", "type": "float"}]
    with pytest.raises(UnloadableModel, match="feature 1 is 'z' in the signature and 'b' in the XGBClassifier"):
        load_model(signature(named), {"m.ubj": content})


def test_json_that_is_no_model_is_refused() -> None:
    for name in ("signature.json", "config.json", "m.ubj"):
        told = f"{name} is no XGBoost model: it has no learner; expected what save_model wrote"
        assert refusal(name, b'{"model_id": "m"}') == told
    # A signature is never taken for the model, whatever else is missing.
    with pytest.raises(UnloadableModel, match="expected a model file"):
        load_model(signature(), {"signature.json": b"{}"})


def test_a_call_that_xgboost_does_not_offer_is_refused() -> None:
    xgboost = pytest.importorskip("xgboost")
    content = bytes(xgboost.XGBClassifier(n_estimators=2).fit(X, Y).get_booster().save_raw("json"))
    with pytest.raises(UnloadableModel, match="an output asks for decision_function, which XGBClassifier does not"):
        load_model(signature(outputs=[{"name": "d", "call": "decision_function"}]), {"m.json": content})


def test_lightgbm_answers_the_same_on_one_thread_whether_or_not_it_knew_names() -> None:
    lightgbm = pytest.importorskip("lightgbm")
    for rows in (X, pd.DataFrame(X, columns=["a", "b"])):
        estimator = lightgbm.LGBMClassifier(n_estimators=4, n_jobs=2, verbose=-1).fit(rows, Y)
        model = load_model(signature(outputs=PROBABILITY), {"model.joblib": dumped(estimator)})
        np.testing.assert_array_equal(estimator.predict_proba(rows)[:, 1], model.predict(X)[0].values)
        assert model.engine == f"lightgbm {lightgbm.__version__}"
        assert load_artifact("m.pkl", dumped(estimator))[0].n_jobs == 1
    renamed = [{"name": "b", "type": "float"}, {"name": "a", "type": "float"}]
    with pytest.raises(UnloadableModel, match="feature 0 is 'b' in the signature and 'a' in the LGBMClassifier"):
        load_model(signature(renamed), {"model.joblib": dumped(estimator)})


# ---------------------------------------------------------------- libraries that are not there, and not asked for

IN_A_BARE_PROCESS = """
import pickle, sys
from consumers.model.formats import UnloadableModel, load_artifact
from consumers.model.runtime import runtime

load_artifact("m.joblib", sys.stdin.buffer.read())
runtime()
print(sorted({"lightgbm", "onnx", "onnxruntime", "skops", "torch", "xgboost"} & set(sys.modules)))
for library in ("lightgbm", "onnxruntime", "skops", "torch", "xgboost"):
    sys.modules[library] = None
lightgbm = b"clightgbm\\nLGBMRegressor\\n."
files = {"m.skops": SKOPS, "m.onnx": b"x", "m.pt": SKOPS, "m.ubj": b"learner", "m.pkl": lightgbm}
for name, content in files.items():
    try:
        load_artifact(name, content)
    except UnloadableModel as error:
        print(error)
"""


def test_a_library_is_loaded_for_its_own_files_alone_and_an_absent_one_is_named_by_its_extra() -> None:
    """None in `sys.modules` makes an import fail as if the library were not installed."""
    program = IN_A_BARE_PROCESS.replace("SKOPS", repr(archived(("schema.json", b"{}"))))
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=dumped(LogisticRegression().fit(X, Y)),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.stderr.decode() == ""
    needs = "which is not installed where workers run: pip install"
    assert done.stdout.decode().splitlines() == [
        "[]",
        f"m.skops needs skops, {needs} millstream[skops]",
        f"m.onnx needs onnxruntime, {needs} millstream[onnx]",
        f"m.pt needs torch, {needs} millstream[torch]",
        f"m.ubj needs xgboost, {needs} millstream[xgboost]",
        f"m.pkl needs lightgbm, {needs} millstream[lightgbm]",
    ]


def test_the_runtime_record_has_the_version_of_every_library_that_models_run_in() -> None:
    from importlib.metadata import version

    libraries = json.loads(runtime().body)["libraries"]
    assert libraries["scikit-learn"] == version("scikit-learn")
    for name in ("lightgbm", "onnxruntime", "skops"):
        pytest.importorskip(name)
        assert libraries[name] == version(name)
    assert set(libraries) <= {name for form in FORMATS.values() for name in form.distributions}


# ---------------------------------------------------------------- drafts


def test_a_signature_is_drafted_from_what_an_onnx_file_tells(tmp_path: Path, pipeline: Any) -> None:
    to_onnx = pytest.importorskip("skl2onnx").to_onnx
    file = tmp_path / "risk.onnx"
    file.write_bytes(to_onnx(pipeline, X[:1].astype(np.float32)).SerializeToString())
    drafted = draft(file, model_id="risk", version="1", rows=None, output=None)
    read, _ = parse_signature(drafted.signature)
    assert [(feature.name, feature.type) for feature in read.features] == [
        ("feature_0", "float"),
        ("feature_1", "float"),
    ]
    assert [name for name, _ in read.golden[0].outputs] == ["prediction", "probability.0", "probability.1"]
    load_model(read, {drafted.model_file: drafted.artifact}).warm()


def test_a_signature_is_drafted_from_what_an_xgboost_file_tells(tmp_path: Path) -> None:
    xgboost = pytest.importorskip("xgboost")
    frame = pd.DataFrame({"age": np.arange(300), "ratio": X[:, 0], "member": X[:, 1] > 0})
    file = tmp_path / "m.json"
    xgboost.XGBClassifier(n_estimators=2).fit(frame, Y).save_model(file)
    drafted = draft(file, model_id="m", version="1", rows=None, output="p")
    read, _ = parse_signature(drafted.signature)
    assert [(feature.name, feature.type) for feature in read.features] == [
        ("age", "int"),
        ("ratio", "float"),
        ("member", "bool"),
    ]
    assert [output.name for output in read.outputs] == ["p", "prediction"]
    load_model(read, {drafted.model_file: drafted.artifact}).warm()
