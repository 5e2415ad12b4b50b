"""The compiled load generators: h2load for gRPC, wrk for HTTP/1.1. Each is a closed loop on one thread.

h2load sends one message over and over on a few connections with many calls in flight on each, as gRPC channels do;
wrk has one connection for each request in flight, as HTTP/1.1 clients do.
"""

from __future__ import annotations

import json
import math
import re
import resource
import shutil
import subprocess
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from loadgen.bench.questions import Question

MOST_CONNECTIONS = 8
MOST_CALLS_EACH = 100
"""What a server of gRPC usually admits on one connection, at least."""
PACKAGES = {"h2load": "nghttp2-client", "wrk": "wrk"}
GRACE_S = 30.0


class GeneratorMissing(Exception):
    """A load generator is not installed; the message names its package."""


class GeneratorFailed(Exception):
    """A load generator ended with an error, or said what was not understood; the message quotes it."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a generator saw in one run."""

    answered: int
    errors: int
    """Answers that were not 2xx, and requests that got none."""
    seconds: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    reply_bytes: int | None = None
    """Of all answers together, without headers; None where the generator does not tell."""
    generator_cpu_s: float = 0.0

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.answered / self.seconds if self.seconds else 0.0

    def silent_errors(self, shortest_answer: int) -> int:
        """At least so many answers lack a message: gRPC's errors come as HTTP 200, with nothing but trailers."""
        if self.reply_bytes is None or shortest_answer <= 0:
            return 0
        return max(0, self.answered - self.reply_bytes // shortest_answer)


class Generator(Protocol):
    """Puts `in_flight` requests on a server and keeps them there for `seconds`."""

    program: str

    def run(self, question: Question, address: str, in_flight: int, seconds: float, folder: Path) -> Measured:
        """Writes its files into `folder`. Raises GeneratorFailed."""


def missing(programs: Iterable[str]) -> list[str]:
    """A sentence for each of the programs that is not on PATH."""
    return [
        f"{program} is not on PATH: install Debian's package {PACKAGES[program]} (apt-get install {PACKAGES[program]})"
        for program in sorted(set(programs))
        if shutil.which(program) is None
    ]


def connections(in_flight: int) -> int:
    """How many connections h2load opens: a divisor of what is in flight, so that each carries as many calls."""
    least = max(min(in_flight, MOST_CONNECTIONS), math.ceil(in_flight / MOST_CALLS_EACH))
    return next(count for count in range(least, in_flight + 1) if in_flight % count == 0)


class H2load:
    """gRPC."""

    program = "h2load"

    def run(self, question: Question, address: str, in_flight: int, seconds: float, folder: Path) -> Measured:
        body, log = folder / "body.bin", folder / "h2load.log"
        body.write_bytes(question.framed)
        log.unlink(missing_ok=True)
        clients = connections(in_flight)
        argv = [
            *("h2load", f"http://{address}{question.path}"),
            *("-c", str(clients), "-m", str(in_flight // clients), "-t", "1"),
            *("-D", f"{round(seconds * 1000)}ms", "-d", str(body), "--log-file", str(log)),
            *("-H", "content-type: application/grpc", "-H", "te: trailers"),
        ]
        said, cpu_s = _run(argv, seconds)
        latencies = array("Q")
        with log.open() as lines:
            for line in lines:
                latencies.append(int(line.rpartition("\t")[2]))
        log.unlink()
        return parse_h2load(said, latencies, cpu_s)


class Wrk:
    """HTTP/1.1."""

    program = "wrk"

    def run(self, question: Question, address: str, in_flight: int, seconds: float, folder: Path) -> Measured:
        script = folder / "wrk.lua"
        script.write_text(wrk_script(question.body))
        argv = [
            *("wrk", "-t", "1", "-c", str(in_flight), "-d", f"{max(1, round(seconds))}s"),
            *("--timeout", "30s", "-s", str(script), f"http://{address}{question.path}"),
        ]
        said, cpu_s = _run(argv, seconds)
        return parse_wrk(said, cpu_s)


def parse_h2load(said: str, latencies_us: Iterable[int], cpu_s: float = 0.0) -> Measured:
    """From h2load's summary, and the latencies of its log in microseconds. Raises GeneratorFailed."""
    # The rate has more digits than the duration beside it, which is rounded to 10 ms.
    rate = re.search(r"finished in [\d.]+m?s, ([\d.]+) req/s", said)
    counts = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", said)
    data = re.search(r"\((\d+)\) data", said)
    if not (rate and counts and data):
        raise GeneratorFailed(f"expected h2load's summary, got: {said.strip()[-500:]}")
    answered, failed, _errored, _timeout = map(int, counts.groups())
    per_s = float(rate[1])
    seen = np.fromiter(latencies_us, dtype=np.float64) / 1000
    p50, p95, p99, most = _percentiles(seen)
    # "failed" holds the errored and the timed out already.
    seconds = (answered + failed) / per_s if per_s else 0.0
    return Measured(answered, failed, seconds, p50, p95, p99, most, int(data[1]), cpu_s)


def parse_wrk(said: str, cpu_s: float = 0.0) -> Measured:
    """From the line that `wrk_script` makes wrk end with. Raises GeneratorFailed."""
    line = re.search(r"^measured (\{.*\})$", said, re.MULTILINE)
    if not line:
        raise GeneratorFailed(f"expected wrk's summary, got: {said.strip()[-500:]}")
    seen = json.loads(line[1])
    # Of wrk's errors, "status" alone are answers.
    refused = seen["status"]
    lost = seen["connect"] + seen["read"] + seen["write"] + seen["timeout"]
    return Measured(
        answered=seen["requests"] - refused,
        errors=refused + lost,
        seconds=seen["us"] / 1e6,
        p50_ms=seen["p50"] / 1000,
        p95_ms=seen["p95"] / 1000,
        p99_ms=seen["p99"] / 1000,
        max_ms=seen["max"] / 1000,
        generator_cpu_s=cpu_s,
    )


def wrk_script(body: bytes) -> str:
    """POSTs the body, and says at the end what wrk itself does not: the 95th percentile, and every kind of error."""
    quoted = "".join(f"\\{byte:03d}" for byte in body)
    names = ("connect", "read", "write", "status", "timeout")
    errors = ", ".join(f"summary.errors.{name}" for name in names)
    counts = ",".join(f'"{name}":%d' for name in names)
    return f"""wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = "{quoted}"
function done(summary, latency)
  io.write(string.format('measured {{"requests":%d,"us":%d,"p50":%d,"p95":%d,"p99":%d,"max":%d,{counts}}}\\n',
    summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(95), latency:percentile(99), latency.max, {errors}))
end
"""


def _percentiles(values: np.ndarray) -> tuple[float, float, float, float]:
    if not values.size:
        return 0.0, 0.0, 0.0, 0.0
    p50, p95, p99, most = (round(float(value), 3) for value in np.percentile(values, (50, 95, 99, 100)))
    return p50, p95, p99, most


def _run(argv: list[str], seconds: float) -> tuple[str, float]:
    """What the program said, and the CPU seconds it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + GRACE_S, check=False)
    except subprocess.TimeoutExpired:
        raise GeneratorFailed(f"{argv[0]} did not end within {GRACE_S:g} s after its time was over") from None
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise GeneratorFailed(f"{argv[0]} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
