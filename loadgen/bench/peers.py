"""Everybody in the race: how each is installed, started and asked, and what it keeps of a request.

Each is set up as its own documentation recommends for many small requests on two cores: batching on, where it has it;
one process that predicts for the light model, two for the heavy one; one BLAS thread in each. Where it says nothing, it
has its default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from loadgen.bench import launches, questions
from loadgen.bench.generators import Generator, H2load, Wrk
from loadgen.bench.launches import Launch, Place
from loadgen.bench.models import BenchModel
from loadgen.bench.questions import Question

IN_FLIGHT = (1, 16, 64, 256, 1000)
# As installed here: everybody loads the one file that was fitted here.
MODEL_LIBRARIES = tuple(f"{name}=={version(name)}" for name in ("scikit-learn", "numpy", "joblib"))
BUDGET_US = {"gateway": 40, "worker": 20, "redis": 22, "sink": 8}
"""What the design grants each process, in microseconds of CPU per request at 1,000 in flight."""
NOTHING_KEPT = "nothing is kept: a power cut loses every request in flight, and there is no record of any other"
KEPT = {
    "everysec": "every request in an event log; AOF everysec: a power cut loses what Redis took in about the last "
    "second, or longer where the disk is slow",
    "always": "every request in an event log; AOF always: a power cut loses nothing that was accepted",
}


@dataclass(frozen=True, slots=True)
class Peer:
    """One server in the race."""

    name: str
    title: str
    client: str
    """Protocol and generator, for people."""
    keeps: str
    """What is left of a request after a power cut, and by which fsync policy."""
    setup: str
    """How it is configured, and which page says so."""
    launch: Callable[[Place, BenchModel], Launch]
    question: Callable[[BenchModel], Question]
    generator: Generator
    requirements: tuple[str, ...] = ()
    """What pip installs; nothing: it runs in Millstream's own environment."""
    models: tuple[str, ...] = ("light", "heavy")
    in_flight: tuple[int, ...] = ()
    """The loads it is measured at; none: at all of them."""
    needs: tuple[str, ...] = ()
    """Modules that have to be there."""
    ours: bool = False
    compiled: bool = False
    """Whether it computes something else than the estimator that the others have."""

    @property
    def lacks(self) -> str:
        """Why it can't run in Millstream's environment; empty where it can."""
        absent = [name for name in self.needs if find_spec(name) is None]
        return f"not installed: {', '.join(absent)}; pip install 'millstream[fast]'" if absent else ""


def _treelite() -> str:
    """As installed here, so that both compile the same."""
    try:
        return f"treelite=={version('treelite')}"
    except PackageNotFoundError:
        return "treelite>=4.8"


GRPC, HTTP = "gRPC, h2load", "HTTP/1.1 with JSON, wrk"
_OURS = (
    "`millstream up` with its defaults, event log on: one worker, which on two cores is as much as is left; `--engine "
)

PEERS = (
    Peer(
        "millstream",
        "Millstream, native engine",
        GRPC,
        KEPT["everysec"],
        f"{_OURS}native`; the heavy model by scikit-learn itself, `MILLSTREAM_COMPILE_MODELS=false`",
        launches.millstream("native"),
        questions.predict,
        H2load(),
        needs=("pygrpc_native",),
        ours=True,
    ),
    Peer(
        "millstream-grpcio",
        "Millstream, grpcio engine",
        GRPC,
        KEPT["everysec"],
        f"{_OURS}grpcio`",
        launches.millstream("grpcio"),
        questions.predict,
        H2load(),
        models=("light",),
        in_flight=(1, 64, 1000),
        ours=True,
    ),
    Peer(
        "millstream-compiled",
        "Millstream, native engine, compiled forest",
        GRPC,
        KEPT["everysec"],
        f"{_OURS}native`: a forest is computed in a compiled form, which is used where it differs in no bit",
        launches.millstream("native", compiled=True),
        questions.predict,
        H2load(),
        models=("heavy",),
        in_flight=(1, 64, 1000),
        needs=("pygrpc_native", "treelite"),
        ours=True,
        compiled=True,
    ),
    Peer(
        "millstream-always",
        "Millstream, native engine, AOF always",
        GRPC,
        KEPT["always"],
        f"{_OURS}native`, `--fsync always`",
        launches.millstream("native", fsync="always"),
        questions.predict,
        H2load(),
        models=("light",),
        in_flight=(64, 1000),
        needs=("pygrpc_native",),
        ours=True,
    ),
    Peer(
        "mosec",
        "Mosec",
        HTTP,
        NOTHING_KEPT,
        "`max_batch_size=256`, `max_wait_time=1` ms, `num` = processes that predict "
        "([interface](https://mosecorg.github.io/mosec/reference/interface.html))",
        launches.mosec,
        lambda model: questions.json_object(model, "/inference"),
        Wrk(),
        ("mosec==0.9.8", *MODEL_LIBRARIES),
    ),
    Peer(
        "mosec-compiled",
        "Mosec, compiled forest",
        HTTP,
        NOTHING_KEPT,
        "the same with the forest compiled by Treelite as its docs show "
        "([GTIL](https://treelite.readthedocs.io/en/latest/gtil.html))",
        launches.compiled_mosec,
        lambda model: questions.json_object(model, "/inference"),
        Wrk(),
        ("mosec==0.9.8", _treelite(), *MODEL_LIBRARIES),
        models=("heavy",),
        in_flight=(1, 64, 1000),
        compiled=True,
    ),
    Peer(
        "mlserver",
        "MLServer",
        GRPC,
        NOTHING_KEPT,
        "gRPC, which its docs call more efficient for numbers; `max_batch_size` 256, `max_batch_time` 1 ms, "
        "and 20 ms for the heavy model, which one caller alone waits for in vain "
        "([adaptive batching](https://docs.seldon.ai/mlserver/user-guide/adaptive-batching)); `parallel_workers` 2 for "
        "the heavy model, 0 for the light one "
        "([parallel inference](https://docs.seldon.ai/mlserver/user-guide/parallel-inference))",
        launches.mlserver,
        questions.infer,
        H2load(),
        # Its workers ask for an event loop that nobody has made, which later versions of uvloop refuse.
        ("mlserver==1.7.1", "mlserver-sklearn==1.7.1", "uvloop==0.21.0", *MODEL_LIBRARIES),
    ),
    Peer(
        "bentoml",
        "BentoML",
        HTTP,
        NOTHING_KEPT,
        "`batchable=True`, `max_batch_size=256` "
        "([adaptive batching](https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html)); `workers` = "
        "processes that predict "
        "([workers](https://docs.bentoml.com/en/latest/build-with-bentoml/parallelize-requests.html))",
        launches.bentoml,
        lambda model: questions.json_rows(model, "/predict"),
        Wrk(),
        ("bentoml==1.4.39", *MODEL_LIBRARIES),
    ),
    Peer(
        "litserve",
        "LitServe",
        HTTP,
        NOTHING_KEPT,
        "`max_batch_size=256`, `batch_timeout` 1 ms "
        "([batching](https://lightning.ai/docs/litserve/features/batching)); `fast_queue=True`, `workers_per_device` "
        "and `num_api_servers` = processes that predict "
        "([server](https://lightning.ai/docs/litserve/api-reference/litserver))",
        launches.litserve,
        lambda model: questions.json_object(model, "/predict"),
        Wrk(),
        ("litserve==0.2.19", *MODEL_LIBRARIES),
    ),
    Peer(
        "echo",
        "bare grpc.aio echo",
        GRPC,
        NOTHING_KEPT,
        "sends the request's bytes back: no parsing, no model",
        launches.echo,
        questions.echo,
        H2load(),
        models=("light",),
    ),
    Peer(
        "echo-native",
        "bare echo, native engine",
        GRPC,
        NOTHING_KEPT,
        "the same on Millstream's native engine",
        launches.native_echo,
        questions.echo,
        H2load(),
        models=("light",),
        in_flight=(1, 64, 1000),
        needs=("pygrpc_native",),
    ),
)
