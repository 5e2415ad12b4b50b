"""The stock models: trained, written, loaded as a worker loads them, and answering what their signatures promise."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest

from consumers.model.model import LoadedModel, UnloadableModel, load_model, rows_of
from contract.signature import Signature, Value, parse_signature
from contract.version import version_digest
from millstream.stock import write_stock

pytest.importorskip("xgboost", reason="one of the stock models needs xgboost")

VERSIONS = ["credit_risk/1.0.0", "credit_risk/1.1.0", "roi_prediction/1.0.0", "churn/1.0.0", "loan_approval/1.0.0"]


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("stock")
    assert write_stock(directory) == [directory / name for name in VERSIONS]
    return directory


def read(stock: Path, name: str) -> tuple[Signature, dict[str, bytes]]:
    files = {path.name: path.read_bytes() for path in (stock / name).iterdir()}
    signature, warnings = parse_signature(files["signature.json"])
    assert warnings == ()
    return signature, files


def answers(model: LoadedModel, *row: Value) -> Mapping[str, object]:
    return {column.name: column.values[0] for column in model.predict(rows_of(model.signature, [row]))}


@pytest.mark.parametrize("name", VERSIONS)
def test_a_stock_model_reproduces_its_golden_outputs(stock: Path, name: str) -> None:
    signature, files = read(stock, name)
    assert len(signature.golden) == 3
    load_model(signature, files).warm()


@pytest.mark.parametrize("name", VERSIONS)
def test_a_golden_output_that_is_off_is_noticed(stock: Path, name: str) -> None:
    signature, files = read(stock, name)
    output, value = next(pair for pair in signature.golden[0].outputs if isinstance(pair[1], float))
    wrong = replace(signature.golden[0], outputs=((output, value + 0.001),))  # type: ignore[operator]
    with pytest.raises(UnloadableModel, match=rf"golden\[0\].outputs.{output}: expected"):
        load_model(replace(signature, golden=(wrong,)), files).warm()


@pytest.mark.parametrize("name", VERSIONS)
def test_a_stock_signature_says_what_it_is(stock: Path, name: str) -> None:
    signature, files = read(stock, name)
    assert f"{signature.model_id}/{signature.version}" == name
    assert signature.azure_location == "ai-models"
    tagged = any(".production." in file for file in files)
    assert (signature.status, tagged) == (("staging", False) if name == "credit_risk/1.1.0" else ("production", True))


def test_the_stock_signatures_are_the_documented_ones(stock: Path) -> None:
    by_name = {name: read(stock, name)[0] for name in VERSIONS}
    assert {name: [each.name for each in signature.outputs] for name, signature in by_name.items()} == {
        "credit_risk/1.0.0": ["default_probability"],
        "credit_risk/1.1.0": ["default_probability"],
        "roi_prediction/1.0.0": ["roi_pct"],
        "churn/1.0.0": ["churn_probability"],
        "loan_approval/1.0.0": ["decision", "approve_probability"],
    }
    churn = by_name["churn/1.0.0"]
    assert churn.entity is not None
    assert churn.entity.store_key("101", churn.features[0]) == "user:101:age"
    assert [signature.matrix for signature in by_name.values()] == [True, True, True, True, False]


def test_leaving_the_scaler_out_changes_the_answer(stock: Path) -> None:
    signature, files = read(stock, "credit_risk/1.0.0")
    model = load_model(signature, files)
    bare = load_model(replace(signature, transforms=()), {"model.joblib": files["model.production.joblib"]})
    scaled, unscaled = (answers(each, 0.6, 45)["default_probability"] for each in (model, bare))
    assert abs(scaled - unscaled) > 0.1  # type: ignore[operator]
    with pytest.raises(UnloadableModel, match=r"golden\[0\]"):
        bare.warm()


def test_the_two_credit_models_differ(stock: Path) -> None:
    one, two = (load_model(*read(stock, f"credit_risk/1.{minor}.0")) for minor in (0, 1))
    assert answers(one, 0.6, 45) != answers(two, 0.6, 45)


def test_predictions_go_the_way_people_expect(stock: Path) -> None:
    credit, churn, loan = (
        load_model(*read(stock, f"{name}/1.0.0")) for name in ("credit_risk", "churn", "loan_approval")
    )
    assert answers(credit, 0.1, 60)["default_probability"] < answers(credit, 1.2, 25)["default_probability"]  # type: ignore[operator]
    assert answers(churn, 25, 200)["churn_probability"] < answers(churn, 25, 0)["churn_probability"]  # type: ignore[operator]
    assert answers(loan, 2000.0, "salaried", True)["decision"] == "approve"
    assert answers(loan, 90000.0, "unemployed", False)["decision"] == "decline"


@pytest.mark.parametrize("name", ["roi_prediction/1.0.0", "churn/1.0.0"])
def test_trees_answer_a_row_alike_in_every_batch(stock: Path, name: str) -> None:
    model = load_model(*read(stock, name))
    rows = np.column_stack([np.linspace(0, 3, 64), np.arange(64.0)])
    whole = model.predict(rows)[0].values
    alone = [model.predict(rows[place : place + 1])[0].values[0] for place in range(64)]
    np.testing.assert_array_equal(whole, alone)


def test_writing_again_leaves_what_is_there(stock: Path) -> None:
    """Other bytes under the same version would be another version under its name."""
    before = {name: version_digest(*_digests(stock, name)) for name in VERSIONS}
    lines: list[str] = []
    assert write_stock(stock, lines.append) == [stock / name for name in VERSIONS]
    assert lines == [f"{name}: there already" for name in VERSIONS]
    assert {name: version_digest(*_digests(stock, name)) for name in VERSIONS} == before


def _digests(stock: Path, name: str) -> tuple[Signature, dict[str, str]]:
    import hashlib

    signature, files = read(stock, name)
    return signature, {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}


def test_without_xgboost_its_model_is_left_out_and_the_extra_named(
    tmp_path: Path, stock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VERSIONS:
        if name != "churn/1.0.0":
            (tmp_path / name).mkdir(parents=True)
            (tmp_path / name / "signature.json").write_bytes((stock / name / "signature.json").read_bytes())
    real = importlib.util.find_spec

    def absent(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "xgboost" else real(name, package)

    monkeypatch.setattr("millstream.stock.find_spec", absent)
    lines: list[str] = []
    assert len(write_stock(tmp_path, lines.append)) == 4
    assert "churn/1.0.0: left out, it needs xgboost: pip install 'millstream[xgboost]'" in lines
    assert not (tmp_path / "churn").exists()
