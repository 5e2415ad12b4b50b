"""Trials of versions in processes that may die of them: what is refused and why, and what is left behind: nothing."""

from __future__ import annotations

import signal
import socket
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from consumers.trial.confinement import Confinement
from consumers.trial.warden import answer
from contract.settings import Settings
from contract.trial import LENGTH, Verdict
from millstream.roles import THREAD_LIMITS
from millstream.trial import NoPlaceToListen, trials, unix_path
from registry.trial import BREAKS, Trials, TrialUnavailable
from tests.conditions import eventually_async
from tests.trial_models import Aborts, NotANumber, Wide, bomb, dumped, linear, on_trial, runs, signature

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

MEMORY = 2**30
QUICK_S = 1.0
"""For what never ends."""
SECRET = "SECRET_OF_THE_REGISTRY"


@pytest.fixture(scope="module")
async def own() -> AsyncIterator[Trials]:
    """Trials by a warden of this process; each test leaves it usable."""
    # It starts with the first trial.
    with pytest.MonkeyPatch.context() as here:
        here.setenv(SECRET, SECRET)
        here.setenv("LD_PRELOAD", "libmimalloc.so")  # as a registry has it, in whose place nothing could be found
        async with trials(Settings.read(trial_memory=MEMORY), THREAD_LIMITS) as own:
            yield own


@pytest.fixture(scope="module")
async def strict() -> AsyncIterator[Trials]:
    """The same with little time and memory."""
    async with trials(Settings.read(trial_seconds=QUICK_S, trial_memory=2**29), THREAD_LIMITS) as strict:
        yield strict


async def tried(own: Trials, model: bytes, name: str = "model.joblib", **changes: Any) -> Verdict:
    return await own(signature(**changes), on_trial({name: model}))


def named(comm: str) -> list[int]:
    """Processes that call themselves so."""
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text().strip() == comm:
                found.append(int(path.parent.name))
        except OSError:  # it has gone meanwhile
            continue
    return found


def as_process(comm: str) -> str:
    """Code that makes its process findable."""
    return f"import ctypes; ctypes.CDLL(None).prctl(15, {comm.encode()!r}, 0, 0, 0)\n"


async def test_a_good_version_passes_and_the_verdict_says_what_was_seen(own: Trials) -> None:
    golden = [{"inputs": [1.0, 2.0], "outputs": {"prediction": 3.0}, "tolerance": 1e-9}]
    verdict = await tried(own, dumped(linear(["a", "b"])), golden=golden)
    assert (verdict.reason, verdict.warnings) == ("", ())
    assert verdict.load_s > 0
    assert 2**20 < verdict.peak_bytes < MEMORY
    assert {"python", "sklearn", "numpy"} <= verdict.libraries.keys()


SEGFAULT = "import ctypes; ctypes.string_at(0)"
WRITES = "import os; os.write(os.open('/tmp', os.O_TMPFILE | os.O_RDWR), b'x')"
STACK = "import sys\nsys.setrecursionlimit(10**9)\ndef deeper(x): return [*map(deeper, [x])]\ndeeper(1)"
BAD_GOLDEN = [{"inputs": [1.0, 2.0], "outputs": {"prediction": 4.0}, "tolerance": 0.5}]
BELOW_ZERO = [
    {"index": 0, "name": "a", "type": "float", "example": -1.0},
    {"index": 1, "name": "b", "type": "float"},
]
ONE = [{"index": 0, "name": "a", "type": "float"}]
HALF = len(dumped(linear())) // 2

REFUSED: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "exits": (runs("import os; os._exit(3)"), {}, "it ended its process with exit code 3 while loading"),
    "exits as if all were well": (
        runs("import os; os._exit(0)"),
        {},
        "it ended its process with exit code 0 while loading",
    ),
    "leaves": (runs("raise SystemExit('bye')"), {}, "it raised SystemExit: bye while loading"),
    "segfaults": (runs(SEGFAULT), {}, "it ended by signal 11 (SIGSEGV) while loading"),
    "aborts with a word": (
        runs("import os; print('no such device', flush=True); os.abort()"),
        {},
        "it ended by signal 6 (SIGABRT) while loading; the last it printed was: no such device",
    ),
    "eats memory": (runs(f"bytearray({2 * MEMORY})"), {}, "it takes more than 1.0 GiB of memory while loading"),
    "a zip bomb": (bomb(MEMORY + 2**24), {}, "it takes more than 1.0 GiB of memory while loading"),
    "a truncated file": (dumped(linear())[:HALF], {}, f"model.joblib ({HALF:,} bytes) can't be loaded: "),
    "an empty file": (b"", {}, "model.joblib (0 bytes) can't be loaded: "),
    "writes a file": (
        runs(WRITES),
        {},
        "model.joblib (*) can't be loaded: OSError: [Errno 27] File too large",
    ),
    "a count of features": (
        dumped(linear()),
        {"expected_features": ONE},
        "the signature has 1 features; LinearRegression was fitted on 2",
    ),
    "an order of features": (
        dumped(linear(["b", "a"])),
        {},
        "feature 0 is 'a' in the signature and 'b' in the LinearRegression",
    ),
    "a shape": (
        dumped(Wide()),
        {},
        "asked for its 2 example rows in one call: predict answered the shape (2, 3); expected (2, 2)",
    ),
    "NaN": (
        dumped(NotANumber()),
        {"expected_features": BELOW_ZERO},
        "the output prediction is NaN for the example row [-1.0, 0.0]",
    ),
    "a golden example": (
        dumped(linear()),
        {"golden": BAD_GOLDEN},
        "golden[0].outputs.prediction: expected 4.0 within 0.5, got 3.0",
    ),
    "no model": (dumped("text"), {}, "an output asks for predict, which str does not have"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_is_no_model_to_serve_is_refused_in_one_sentence(own: Trials, case: str) -> None:
    content, changes, expected = REFUSED[case]
    reason = (await tried(own, content, **changes)).reason
    start, _, rest = expected.partition("*")
    assert reason.startswith(start)
    assert rest in reason
    # ... and it harms nobody: the next one is tried as if nothing had been.
    assert (await tried(own, dumped(linear()))).reason == ""


async def test_a_recursion_without_end_is_refused(own: Trials) -> None:
    """Where the interpreter counts calls of C it is an exception, and where it does not the stack runs out."""
    reason = (await tried(own, runs(STACK))).reason
    assert "RecursionError" in reason or "SIGSEGV" in reason or "of memory" in reason


async def test_a_version_that_dies_of_its_examples_is_refused(own: Trials) -> None:
    assert (await tried(own, dumped(Aborts()))).reason == "it ended by signal 6 (SIGABRT) while answering its examples"


async def test_a_file_that_is_not_the_recorded_one_is_not_loaded(own: Trials) -> None:
    artifacts = on_trial({"model.joblib": runs("import os; os._exit(9)")}, {"model.joblib": dumped(linear())})
    verdict = await own(signature(), artifacts)
    assert verdict.reason == "model.joblib is not the file that was recorded: its SHA-256 differs"


async def test_files_that_are_larger_than_the_limit_are_not_even_kept(strict: Trials) -> None:
    files = {"model.joblib": dumped(linear()), "tokenizer.bin": bytes(2**29)}
    verdict = await strict(signature(), on_trial(files))
    assert verdict.reason == "its files have 512 MiB; a trial may take 512 MiB of memory"


async def test_what_it_prints_does_not_pass_for_a_verdict(own: Trials) -> None:
    chatter = "import os\nfor n in (1, 2): os.write(n, b'v' + b'{\"reason\": \"\"}\\n' * 20_000)\nprint('x' * 10**6)"
    assert (await tried(own, runs(chatter, linear()))).reason == ""
    printed = await tried(own, runs(chatter + "\nos._exit(0)"))
    assert printed.reason.startswith("it ended its process with exit code 0 while loading; the last it printed was: ")
    assert len(printed.reason) < 400


async def test_another_library_version_is_a_warning(own: Trials) -> None:
    content = dumped(linear())
    import sklearn

    ours = sklearn.__version__.encode()
    theirs = ours[:-1] + bytes([ours[-1] ^ 1])
    assert content.count(ours) == 1
    verdict = await tried(own, content.replace(ours, theirs))
    assert verdict.reason == ""
    assert len(verdict.warnings) == 1
    assert theirs.decode() in verdict.warnings[0]


async def test_nan_where_a_golden_example_says_so_is_fine(own: Trials) -> None:
    golden = [{"inputs": [-1.0, 0.0], "outputs": {"prediction": None}}]
    assert (await tried(own, dumped(NotANumber()), golden=golden)).reason == ""


async def test_a_version_that_never_ends_is_ended_with_all_it_started(strict: Trials) -> None:
    comm = f"t{uuid.uuid4().hex[:10]}"
    code = "import os, time\n" + as_process(comm) + "os.fork()\nif os.fork() == 0: os.setsid()\ntime.sleep(1000)"
    assert (await tried(strict, runs(code))).reason == "it was not loaded within 1 s"
    assert named(comm) == []


async def test_processes_that_a_passed_version_left_behind_are_ended(own: Trials) -> None:
    comm = f"t{uuid.uuid4().hex[:10]}"
    code = "import os, time\nif os.fork() == 0:\n os.setsid()\n if os.fork(): os._exit(0)\n " + as_process(comm)
    verdict = await tried(own, runs(code + " os.closerange(0, 100); time.sleep(1000)", linear()))
    assert verdict.reason == ""
    assert named(comm) == []


async def test_a_trial_that_is_given_up_leaves_nothing(own: Trials) -> None:
    comm = f"t{uuid.uuid4().hex[:10]}"

    async def is_there() -> bool:
        return bool(named(comm))

    async def is_gone() -> bool:
        return not named(comm)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tried, own, runs(as_process(comm) + "import time; time.sleep(1000)"))
        await eventually_async(is_there, within=20)
        tasks.cancel_scope.cancel()
    await eventually_async(is_gone, within=10)


async def test_a_version_that_ends_the_warden_is_tried_again_and_then_refused(own: Trials) -> None:
    kills = runs(f"import os, time; os.kill(os.getppid(), {int(signal.SIGKILL)}); time.sleep(1000)")
    for _ in range(BREAKS - 1):
        with pytest.raises(TrialUnavailable, match="broke off"):
            await tried(own, kills)
    assert (await tried(own, kills)).reason == (
        f"the process that watches over trials ended {BREAKS} times while it was tried"
    )
    assert (await tried(own, dumped(linear()))).reason == ""


async def test_a_version_finds_no_environment_and_no_open_files(own: Trials) -> None:
    look = f"""
import os
names = [name for name in ("HOME", "PATH", "LD_PRELOAD", {SECRET!r}) if name in os.environ]
fds = sorted(map(int, os.listdir("/proc/self/fd")))
raise ValueError(f"has {{names}} {{{SECRET!r}.encode() in open('/proc/self/environ', 'rb').read()}}, open {{fds}}")
"""
    reason = (await tried(own, runs(look))).reason
    # The fourth is the pipe it answers on, the fifth was the folder that is listed.
    assert reason.endswith("ValueError: has [] False, open [0, 1, 2, 3, 4]")


async def test_nobody_at_the_address_is_no_fault_of_the_version(tmp_path: Path) -> None:
    address = f"unix:/{tmp_path.name}/trial.sock"
    async with trials(Settings.read(trial_address=address), THREAD_LIMITS) as far:
        with pytest.raises(TrialUnavailable, match=f"start `millstream trial --listen {address}`"):
            await tried(far, dumped(linear()))


@pytest.mark.parametrize("address", ["127.0.0.1:7000", "unix:relative.sock", "unix:/" + "x" * 200])
def test_an_address_that_is_no_socket_s_is_refused(address: str) -> None:
    with pytest.raises(NoPlaceToListen, match="expected unix:/path"):
        unix_path(address)


@pytest.mark.parametrize("said", [b"", b"\xff\xff\xff\xff", LENGTH.pack(2) + b"[]", LENGTH.pack(20) + b'{"signature"'])
def test_a_warden_hangs_up_on_silence_and_on_what_is_no_request(said: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(said)
        if said:
            ours.shutdown(socket.SHUT_WR)
        answer(theirs, Confinement(QUICK_S, 2**29), idle_s=0.05)
        theirs.shutdown(socket.SHUT_RDWR)
        assert ours.recv(1) == b""
