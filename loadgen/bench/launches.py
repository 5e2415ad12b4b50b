"""How each server is started: its command, its environment and the files it wants."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from loadgen.bench.models import BenchModel

SERVERS = Path(__file__).parent / "servers"
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}

ROLES = ("gateway", "worker", "sink", "registry")

Fsync = Literal["everysec", "always"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server is to run: the Python that has it, an empty folder of its own, and two free ports."""

    python: Path
    folder: Path
    port: int
    second_port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True)
class Launch:
    """A server's command; its environment on top of ours."""

    argv: tuple[str | Path, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None


def role_of(words: Sequence[str]) -> str:
    """What a process of `millstream up` does: gateway, worker, redis, sink, registry, or up for the rest."""
    # It writes its socket's address behind its path, into the same word.
    if words and any(server in words[0] for server in ("valkey-server", "redis-server")):
        return "redis"
    if "millstream" in words[:-1] and (role := words[words.index("millstream") + 1]) in ROLES:
        return role
    return "up"


def one_role(_words: Sequence[str]) -> str:
    """For a server whose processes are not told apart."""
    return "server"


def millstream(
    engine: str, *, fsync: Fsync = "everysec", compiled: bool = False
) -> Callable[[Place, BenchModel], Launch]:
    """Everything of it. The heavy model is computed by the estimator that everybody has, unless `compiled`."""

    def launch(place: Place, model: BenchModel) -> Launch:
        store = place.folder / "store"
        model.write_version(store)
        command = ("up", "--state-dir", state_dir(place.folder), "--store", store, "--listen", place.address)
        chosen = ("--workers", "1", "--engine", engine, "--fsync", fsync)
        env = {} if compiled or model.name != "heavy" else {"MILLSTREAM_COMPILE_MODELS": "false"}
        return Launch((place.python, "-m", "millstream", *command, *chosen), env)

    return launch


def state_dir(folder: Path) -> Path:
    """Millstream's, below the folder that it runs in."""
    return folder / "state"


def echo(place: Place, _model: BenchModel) -> Launch:
    """loadgen.echo."""
    return Launch((place.python, "-m", "loadgen.echo", "--listen", place.address))


def native_echo(place: Place, _model: BenchModel) -> Launch:
    """The echo on Millstream's native engine."""
    return Launch((place.python, "-m", "loadgen.bench.native_echo", "--listen", place.address))


def mosec(place: Place, model: BenchModel) -> Launch:
    """Its server as a program."""
    argv = (place.python, SERVERS / "serve_mosec.py", "--address", "127.0.0.1", "--port", str(place.port))
    return Launch((*argv, "--log-level", "warning"), _model_env(model), place.folder)


def compiled_mosec(place: Place, model: BenchModel) -> Launch:
    """The same with the heavy model in its compiled form."""
    launch = mosec(place, model)
    return replace(launch, env={**launch.env, "BENCH_COMPILED": "1"})


def mlserver(place: Place, model: BenchModel) -> Launch:
    """With its runtime for scikit-learn."""
    # The model's folder has to have its name, or each start warns.
    home = place.folder / model.name
    home.mkdir()
    (home / "settings.json").write_text(
        json.dumps(
            {
                "host": "127.0.0.1",
                "grpc_port": place.port,
                "http_port": place.second_port,
                "metrics_endpoint": None,
                # As many as cores where predicting is the work; in the server's own process where it is not, since
                # handing a request over costs more than the prediction.
                "parallel_workers": model.workers if model.workers > 1 else 0,
                "debug": False,
            }
        )
    )
    (home / "model-settings.json").write_text(
        json.dumps(
            {
                "name": model.name,
                "implementation": "mlserver_sklearn.SKLearnModel",
                "parameters": {"uri": str(model.artifact), "version": "1"},
                "max_batch_size": 256,
                # A forest takes so long that next to nothing arrives within a millisecond after it: its batches stayed
                # at one row. The wait is what one caller alone pays for that.
                "max_batch_time": 0.02 if model.workers > 1 else 0.001,
            }
        )
    )
    return Launch((place.python.with_name("mlserver"), "start", home), ONE_THREAD, place.folder)


def bentoml(place: Place, model: BenchModel) -> Launch:
    """`bentoml serve`."""
    argv = (place.python.with_name("bentoml"), "serve", "serve_bentoml:Predictor", "--host", "127.0.0.1")
    env = {"BENTOML_HOME": str(place.folder / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
    return Launch((*argv, "--port", str(place.port)), {**_model_env(model), **env}, SERVERS)


def litserve(place: Place, model: BenchModel) -> Launch:
    """Its server as a program."""
    env = {**_model_env(model), "BENCH_PORT": str(place.port)}
    return Launch((place.python, SERVERS / "serve_litserve.py"), env, place.folder)


def _model_env(model: BenchModel) -> dict[str, str]:
    return {**ONE_THREAD, "BENCH_MODEL": str(model.artifact), "BENCH_WORKERS": str(model.workers)}


def launch_env(launch: Launch) -> dict[str, str]:
    """Ours without settings of Millstream's, then the launch's own: everybody starts from defaults."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MILLSTREAM_", "BENCH_"))}
    # Programs that a peer starts by name are those of its own environment.
    folder = Path(launch.argv[0]).parent
    return {**kept, "PATH": f"{folder}{os.pathsep}{kept.get('PATH', '')}", **launch.env}
