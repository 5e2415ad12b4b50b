"""The results as a page for people: what was measured, on what, how noisy, and what each row stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median

from loadgen.bench.chart import Panel, chart
from loadgen.bench.peers import BUDGET_US, PEERS, Peer
from loadgen.bench.results import Cell, Over, Results, middle

MB = 1_000_000
ROLE_ORDER = ("gateway", "worker", "redis", "sink", "registry", "up")
TITLES = {"light": "Light: logistic regression, 4 features", "heavy": "Heavy: random forest, 100 trees, 20 features"}
NOTES = {
    "light": "From the same file everywhere. Millstream computes it, by default, in a compiled form that differs in no "
    "bit, the others by scikit-learn.",
    "heavy": "The same scikit-learn estimator everywhere, from the same file; rows that say so compute the same forest "
    "in a compiled form.",
}
NOISY_CORES = 0.2
"""With more of the machine busy elsewhere, in the middle, the numbers say little."""
HTTP_LOAD = "wrk opens one connection for each request in flight, h2load a few with many calls on each."


def page(results: Results, name: str) -> str:
    """Markdown; the charts beside it are named after the models."""
    models = [model for model in TITLES if any(cell.model == model for cell in results.cells)]
    parts = [f"# Benchmark {name}", _warning(results), _about(results)]
    for model in models:
        parts += [f"## {TITLES[model]}", NOTES[model], f"![{TITLES[model]}]({model}.svg)"]
        parts += [_rates(results, model), _latencies(results, model), _beside_best(results, model)]
    parts += ["## CPU per request", *(_cpu(results, model) for model in models)]
    parts += ["## Memory", _memory(results), _long(results)]
    parts += ["## What each row stands for", _rows(results), "## Noise", _noise(results), _recorded(results)]
    if results.skipped:
        lines = [f"- {_title(peer)}: {why}" for peer, why in results.skipped.items()]
        parts += ["## Left out", "\n".join(lines)]
    return "\n\n".join(part for part in parts if part) + "\n"


def charts(results: Results) -> dict[str, str]:
    """An SVG by file name."""
    drawn = {}
    for model, title in TITLES.items():
        peers = _peers(results, model)
        if peers:
            rate, p99 = (
                {peer.title: _line(results, peer, model, field) for peer in peers} for field in ("rate", "p99_ms")
            )
            panels = [Panel("Answers", "per second", rate), Panel("p99", "ms", p99)]
            drawn[f"{model}.svg"] = chart(title, panels, [peer.title for peer in PEERS])
    return drawn


def _line(results: Results, peer: Peer, model: str, field: str) -> dict[int, float]:
    return {load: middle(results.of(peer.name, model, load), field) for load in _loads(results, peer.name, model)}


def _warning(results: Results) -> str:
    busy = Over.rounds(cell.elsewhere_cores for cell in results.cells)
    if busy is None or busy.middle < NOISY_CORES:
        return ""
    return f"**Not a result: the machine had {busy.middle:.1f} of its cores busy with something else.**"


def _about(results: Results) -> str:
    machine, settings = results.machine, results.settings
    return (
        f"{machine['when']}, {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"{machine['system']}, Python {machine['python']}; Millstream {settings['millstream']}, Redis protocol server "
        f"{settings['redis']}; {settings['generators']}. {_rounds(settings['rounds'])} of {settings['seconds']:g} s "
        "per load, the servers in another order each round, each started afresh and measured alone. Load generator and "
        "server share the cores. Numbers are medians over the rounds; ± is half of the way from the least to the most. "
        "Ratios within one run mean something elsewhere, absolute numbers do not.\n\n"
        "A closed loop: a request is sent when another was answered, so that latencies beyond saturation say how long "
        "the queue is. Every server answered the request rightly before it was measured, and answers that were "
        f"refused or empty count as errors, not as answers. {HTTP_LOAD}"
    )


def _rates(results: Results, model: str) -> str:
    def cell(cells: Sequence[Cell]) -> str:
        over = Over.rounds(cell.rate for cell in cells)
        assert over is not None
        errors = sum(cell.errors for cell in cells)
        failed = f", {errors:,} errors" if errors else ""
        spread = f" ±{over.spread / 2:.0%}" if len(cells) > 1 else ""
        return f"{over.middle:,.0f}{spread}{failed}"

    return "Answers per second:\n\n" + _by_load(results, model, cell)


def _latencies(results: Results, model: str) -> str:
    def cell(cells: Sequence[Cell]) -> str:
        return " / ".join(f"{middle(cells, name):,.2f}" for name in ("p50_ms", "p95_ms", "p99_ms"))

    return "p50 / p95 / p99 in milliseconds:\n\n" + _by_load(results, model, cell)


def _by_load(results: Results, model: str, cell: Callable[[Sequence[Cell]], str]) -> str:
    loads = sorted({each.in_flight for each in results.cells if each.model == model})
    rows = []
    for peer in _peers(results, model):
        found = [results.of(peer.name, model, load) for load in loads]
        rows.append([peer.title, peer.client, *(cell(cells) if cells else "" for cells in found)])
    return table(["server", "client", *(f"{load:,} in flight" for load in loads)], rows)


def _beside_best(results: Results, model: str) -> str:
    """Ours as a multiple of the best of the others at that load, in the same round: estimator beside estimator, and
    what is compiled beside both kinds."""
    there = _peers(results, model)
    rivals = [peer for peer in there if not peer.ours and peer.requirements]
    rows = [
        row
        for peer in there
        if peer.ours
        for compiled in ((False, True) if peer.compiled else (False,))
        for load in _loads(results, peer.name, model)
        for row in _beside(results, peer, [rival for rival in rivals if rival.compiled == compiled], model, load)
    ]
    heads = ["server", "in flight", "best of the others", "answers per second, as a multiple", "p50, as a multiple"]
    if not rows:
        return ""
    return "Millstream beside the best of the other servers at that load, round by round:\n\n" + table(heads, rows)


def _beside(results: Results, peer: Peer, rivals: Sequence[Peer], model: str, load: int) -> list[list[str]]:
    """One row; none where nobody was measured in the same round."""
    rates = {rival: [cell.rate for cell in results.of(rival.name, model, load)] for rival in rivals}
    best = max((rival for rival in rivals if rates[rival]), key=lambda rival: median(rates[rival]), default=None)
    if best is None:
        return []
    theirs = {cell.round: cell for cell in results.of(best.name, model, load)}
    pairs = [(cell, theirs[cell.round]) for cell in results.of(peer.name, model, load) if cell.round in theirs]
    rate = Over.rounds(ours.rate / other.rate for ours, other in pairs if other.rate)
    p50 = Over.rounds(ours.p50_ms / other.p50_ms for ours, other in pairs if other.p50_ms)
    if rate is None or p50 is None:
        return []
    spread = f"{rate.middle:.2f} ({rate.least:.2f} to {rate.most:.2f})"
    return [[peer.title, f"{load:,}", best.title, spread, f"{p50.middle:.2f}"]]


def _cpu(results: Results, model: str) -> str:
    """At the highest load: everybody's whole process tree, and Millstream's processes beside what the design grants."""
    peers = _peers(results, model)
    rows = []
    for peer in peers:
        load = max(_loads(results, peer.name, model))
        cells = results.of(peer.name, model, load)
        total = median(sum(cell.cpu_us.values()) for cell in cells)
        roles = [_role_us(cells, role) for role in ROLE_ORDER] if peer.ours else [""] * len(ROLE_ORDER)
        rows.append([peer.title, f"{load:,}", f"{total:,.0f}", *roles, f"{middle(cells, 'generator_cpu_us'):,.0f}"])
    budget = [f"{BUDGET_US[role]}" if role in BUDGET_US else "" for role in ROLE_ORDER]
    if model == "light":
        rows.append(["budget of the design", "1,000", f"{sum(BUDGET_US.values())}", *budget, ""])
    heads = ["server", "in flight", "whole tree", *ROLE_ORDER, "load generator"]
    return f"{TITLES[model]}, microseconds of CPU per answer:\n\n" + table(heads, rows)


def _role_us(cells: Sequence[Cell], role: str) -> str:
    return f"{median(cell.cpu_us.get(role, 0.0) for cell in cells):,.1f}"


def _memory(results: Results) -> str:
    rows = []
    for model in TITLES:
        for peer in _peers(results, model):
            starts = [s for s in results.starts if (s.peer, s.model) == (peer.name, model) and s.rest_rss_bytes]
            load = max(_loads(results, peer.name, model))
            cells = results.of(peer.name, model, load)
            redis = [cell.redis_bytes for cell in cells if cell.redis_bytes is not None]
            rest = _pair((s.rest_pss_bytes for s in starts), (s.rest_rss_bytes for s in starts))
            after = _pair((cell.pss_bytes for cell in cells), (cell.rss_bytes for cell in cells))
            rows.append([peer.title, model, rest, after, f"{load:,}", _mb(redis)])
    heads = ["server", "model", "at rest, PSS / RSS", "under load, PSS / RSS", "in flight", "Redis used_memory"]
    return "Megabytes of the whole process tree, embedded Redis included:\n\n" + table(heads, rows)


def _long(results: Results) -> str:
    lines = []
    for cell in results.cells:
        if cell.redis_series:
            ttl = results.settings["reply_ttl_s"]
            seen = ", ".join(f"{used / MB:,.0f} at {at:,.0f} s" for at, used in cell.redis_series[::3])
            lines.append(
                f"{_title(cell.peer)}, {cell.model}, {cell.in_flight:,} in flight for {cell.seconds:,.0f} s, which is "
                f"{cell.seconds / ttl:.1f} times the reply TTL of {ttl} s, so that expiry is paid for. Redis's "
                f"used_memory in MB: {seen}."
            )
    return "\n\n".join(lines)


def _rows(results: Results) -> str:
    rows = []
    for peer in PEERS:
        if any(cell.peer == peer.name for cell in results.cells):
            release = ", ".join(peer.requirements[:-3]) or f"millstream {results.settings['millstream']}"
            rows.append([peer.title, release, peer.client, peer.setup, peer.keeps])
    heads = ["server", "version", "protocol and load generator", "set up", "what is kept, and what a power cut loses"]
    return table(heads, rows)


def _noise(results: Results) -> str:
    loop = Over.rounds(cell.calibration_ms for cell in results.cells)
    elsewhere = Over.rounds(cell.elsewhere_cores for cell in results.cells)
    groups = {(cell.peer, cell.model, cell.in_flight) for cell in results.cells}
    spreads = [over.spread for group in groups if (over := Over.rounds(cell.rate for cell in results.of(*group)))]
    if loop is None or elsewhere is None:
        return "Nothing was measured."
    tired = sum(not cell.rested for cell in results.cells)
    apart = f"{median(spreads):.0%} in the middle, {max(spreads):.0%} at most"
    busy = f"{elsewhere.middle:.2f} cores busy in the middle, {elsewhere.most:.2f} at most"
    took = f"{loop.middle:.1f} ms in the middle, {loop.least:.1f} at least and {loop.most:.1f} at most"
    sentences = (
        f"Before each load a loop of fixed length took {took}.",
        f"What neither the server nor the load generator did kept {busy}.",
        f"Over the rounds the answers per second of the same cell went apart by {apart}.",
        f"Load of the machine before: {results.machine['load_before']:g}.",
        f"Cells after which the server went on working for long: {tired}.",
    )
    return " ".join(sentences)


def _recorded(results: Results) -> str:
    starts = [start for start in results.starts if start.recorded is not None and not start.problem]
    lines = []
    if starts:
        answered, recorded = sum(start.answered for start in starts), sum(start.recorded or 0 for start in starts)
        lines.append(
            f"Millstream answered {answered:,} requests in this run, warm-ups included; its event logs hold "
            f"{recorded:,} events with status OK, among them the first questions and what was in flight when a load "
            "generator left."
        )
    broken = [start for start in results.starts if start.problem]
    lines += [f"- {_title(s.peer)}, {s.model}, round {s.round}: {' '.join(s.problem.split())}" for s in broken]
    return "\n\n".join(lines)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; columns that hold numbers stand to the right."""
    body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    right = [
        any(row[i] for row in body) and all(not row[i] or row[i][0].isdigit() for row in body)
        for i in range(len(heads))
    ]
    lines = [" | ".join(heads), " | ".join("---:" if each else "---" for each in right)]
    lines += [" | ".join(row) for row in body]
    return "\n".join(f"| {line} |" for line in lines)


def _peers(results: Results, model: str) -> list[Peer]:
    """Those that were measured with that model, in the order of the list."""
    there = {cell.peer for cell in results.cells if cell.model == model}
    return [peer for peer in PEERS if peer.name in there]


def _loads(results: Results, peer: str, model: str) -> list[int]:
    return sorted({cell.in_flight for cell in results.cells if (cell.peer, cell.model) == (peer, model)})


def _title(name: str) -> str:
    return next((peer.title for peer in PEERS if peer.name == name), name)


def _rounds(count: int) -> str:
    return f"{count} rounds" if count > 1 else "1 round"


def _pair(pss: Iterable[int], rss: Iterable[int]) -> str:
    return " / ".join((_mb(pss), _mb(rss)))


def _mb(values: Iterable[int]) -> str:
    """The median in megabytes; empty where there are none."""
    seen = list(values)
    return f"{median(seen) / MB:,.0f}" if seen else ""
