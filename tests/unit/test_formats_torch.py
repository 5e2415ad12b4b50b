"""PyTorch files: what the module answers when it is called directly, and the files that would bring code along."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest

from consumers.model.formats import Lent, UnloadableModel, load_artifact
from consumers.model.model import LoadedModel, PredictFailed, load_model
from tests.unit.test_model import X, signature

# TorchScript is deprecated, and in use.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="PyTorch is too large for the lock: pip install millstream[torch]")


@pytest.fixture(scope="module")
def net(torch: Any) -> Any:
    """Two features, two outputs: scores of three classes, and their probabilities."""
    from torch import nn

    class Net(nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.hidden = nn.Linear(2, 8)
            self.last = nn.Linear(8, 3)

        def forward(self, rows: Any) -> Any:
            scores = self.last(torch.relu(self.hidden(rows)))
            return scores, torch.softmax(scores, 1)

    return Net().eval()


@pytest.fixture(scope="module")
def script(torch: Any, net: Any) -> bytes:
    return traced(torch, net, torch.zeros(1, 2))


@pytest.fixture(scope="module")
def exported(torch: Any, net: Any) -> bytes:
    file = BytesIO()
    torch.export.save(
        torch.export.export(net, (torch.zeros(4, 2),), dynamic_shapes=({0: torch.export.Dim.AUTO},)), file
    )
    return file.getvalue()


def traced(torch: Any, module: Any, *example: Any) -> bytes:
    file = BytesIO()
    torch.jit.save(torch.jit.trace(module, example, strict=False), file)
    return file.getvalue()


def loaded(content: bytes, features: list[dict[str, Any]] | None = None, **changes: Any) -> LoadedModel:
    return load_model(signature(features, **changes), {"model.pt": content})


def refusal(content: bytes, **changes: Any) -> str:
    with pytest.raises(UnloadableModel) as caught:
        loaded(content, **changes)
    return str(caught.value)


@pytest.mark.parametrize("form", ["script", "exported"])
def test_a_program_answers_what_the_module_answers(
    form: str, torch: Any, net: Any, request: pytest.FixtureRequest
) -> None:
    outputs = [{"name": "score"}, {"name": "output_1", "column": 2}]
    model = loaded(request.getfixturevalue(form), outputs=outputs)
    with torch.inference_mode():
        scores, probabilities = (each.numpy() for each in net(torch.from_numpy(X.astype(np.float32))))
    columns = model.predict(X)
    assert [column.name for column in columns] == ["score.0", "score.1", "score.2", "output_1"]
    np.testing.assert_array_equal(scores, np.column_stack([column.values for column in columns[:3]]))
    np.testing.assert_array_equal(probabilities[:, 2], columns[3].values)
    again = model.predict(X)
    np.testing.assert_array_equal(columns[0].values, again[0].values)
    assert len(model.predict(X[:1])[0].values) == 1
    assert model.engine == f"torch {torch.__version__}"
    assert (torch.get_num_threads(), torch.get_num_interop_threads()) == (1, 1)


def test_a_dictionary_is_answered_by_name_and_an_argument_each_keeps_its_type(torch: Any) -> None:
    class Lookup(torch.nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.tensor([10.0, 20.0, 30.0]))

        def forward(self, place: Any, weight: Any) -> Any:
            return {"weighed": self.table[place] * weight, "place": place}

    content = traced(torch, Lookup(), torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1))
    features = [{"name": "place", "type": "int"}, {"name": "weight", "type": "float"}]
    model = loaded(content, features, input="dataframe", outputs=[{"name": "weighed"}, {"name": "place"}])
    assert model.outputs == (("weighed", "float"), ("place", "int"))
    weighed, place = model.predict(np.array([[2.0, 0.5], [1.0, 2.0]]))
    assert (list(weighed.values), list(place.values)) == ([15.0, 40.0], [2, 1])
    features[1]["name"] = "mass"
    with pytest.raises(UnloadableModel, match="feature 1 is 'mass' in the signature and 'weight' in the TorchProgram"):
        loaded(content, features, input="dataframe")


@pytest.mark.parametrize("call", ["predict_proba", "decision_function"])
def test_calls_other_than_predict_are_refused(call: str, script: bytes) -> None:
    told = refusal(script, outputs=[{"name": "p", "call": call}])
    assert told.startswith(f"an output asks for {call}, and a PyTorch program offers predict alone")


def test_a_number_beyond_float32_or_another_width_fails_the_prediction(script: bytes) -> None:
    model = loaded(script)
    with pytest.raises(PredictFailed, match="rows is float32, which can't hold a value that came"):
        model.predict(np.array([[1e39, 0.0]]))
    with pytest.raises(PredictFailed, match="the model raised RuntimeError"):
        model.predict(np.zeros((1, 3)))


def test_what_torch_save_writes_is_refused(torch: Any, net: Any) -> None:
    for held in (net.state_dict(), {"a": 1}):
        file = BytesIO()
        torch.save(held, file)
        assert "holds no TorchScript and no exported program: what torch.save writes" in refusal(file.getvalue())


def test_an_export_for_one_number_of_rows_is_refused(torch: Any, net: Any) -> None:
    file = BytesIO()
    torch.export.save(torch.export.export(net, (torch.zeros(4, 2),)), file)
    assert "takes 4 rows and no other number; export it with a dynamic first dimension" in refusal(file.getvalue())


def rewritten(archive: bytes, change: Callable[[str, bytes], bytes], *extra: str) -> bytes:
    """The archive with each member as `change` makes it of its name and content, and more members."""
    file = BytesIO()
    with zipfile.ZipFile(BytesIO(archive)) as before, zipfile.ZipFile(file, "w") as after:
        for name in before.namelist():
            after.writestr(name, change(name, before.read(name)))
        for name in extra:
            after.writestr(name, b"x")
    return file.getvalue()


class Bomb:
    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was loaded",)


def test_pickles_and_compiled_code_in_an_export_are_refused_unread(torch: Any, exported: bytes) -> None:
    """PyTorch itself would unpickle these without restriction."""
    file = BytesIO()
    torch.save(Bomb(), file)

    def inputs(name: str, content: bytes) -> bytes:
        return file.getvalue() if "/sample_inputs/" in name else content

    def weights(name: str, content: bytes) -> bytes:
        return content.replace(b'"use_pickle": false', b'"use_pickle": true') if "weights_config" in name else content

    def constants(name: str, content: bytes) -> bytes:
        return (
            json.dumps({"config": {"c": {"path_name": "opaque_obj_0"}}}).encode() if "constants_c" in name else content
        )

    def same(name: str, content: bytes) -> bytes:
        return content

    for change, extra, says in (
        (inputs, (), "data/sample_inputs/model.pt"),
        (weights, (), "hidden.weight"),
        (constants, (), ", c;"),
        (same, ("archive/data/aotinductor/model/a.so",), "data/aotinductor/model/a.so"),
        (same, ("archive/data/weights/model.pt",), "data/weights/model.pt"),
    ):
        told = refusal(rewritten(exported, change, *extra))
        assert "holds a pickle or compiled code" in told
        assert says in told
    assert loaded(rewritten(exported, same)).engine.startswith("torch ")


NO_FILE_MAY_GROW = """
import resource, signal, sys
content = sys.stdin.buffer.read()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
from consumers.model.formats import load_artifact
load_artifact("m.pt", content)
"""


def test_an_export_loads_where_no_file_can_be_written(exported: bytes) -> None:
    """A version on trial may write nothing; PyTorch's import asks for a folder to write to."""
    done = subprocess.run(
        [sys.executable, "-c", NO_FILE_MAY_GROW], input=exported, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr.decode()) == (0, "")


@pytest.mark.parametrize("form", ["script", "exported"])
def test_a_truncated_file_is_refused(form: str, request: pytest.FixtureRequest) -> None:
    content = request.getfixturevalue(form)
    for length in (0, 100, len(content) // 2, len(content) - 1):
        with pytest.raises(UnloadableModel, match="it is no whole zip archive"):
            load_artifact("model.pt", content[:length])


def test_a_big_model_lends_pytorch_its_threads(torch: Any) -> None:
    """PyTorch keeps a number of its own beside OpenMP's."""
    before = torch.get_num_threads()
    with Lent(before + 1).lent():
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
