"""The report of a comparison: what a person decides from, as sentences, as plain values for programs, as one page.

Comparison + how it was made  ->  headline  ->  JSON, or HTML (`consumers.replay.page`)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from consumers.replay.comparison import LADDER, Comparison, Example
from consumers.replay.outputs import Compared, LabelOutput, NumberOutput, plain
from consumers.replay.slices import Concentration, Slice, number, wilson

QUANTILES = (0.0, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1.0)


CLEAR = 1.5
"""So many times as often as elsewhere is worth a sentence."""


@dataclass(frozen=True, slots=True)
class Made:
    """How a comparison was made."""

    model_id: str
    version: str
    """The candidate's."""
    digest: str
    """The candidate's, hex."""
    place: str
    """Where the candidate came from."""
    command: str
    """What makes it once more."""
    at: datetime
    wanted: int
    """Requests that were asked for."""
    is_whole: bool = True
    engines: Mapping[str, int] = field(default_factory=dict)
    """What the candidate answered with -> predict calls."""
    runtime: Mapping[str, Any] = field(default_factory=dict)
    runtime_id: str = ""
    runtime_differences: Mapping[str, int] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)
    """Versions that answered and are not to be had -> why."""


def percent(share: float) -> str:
    """A share as people read it; 0 and 100 only where it is none or all."""
    value = 100 * share
    if value in (0, 100):
        return f"{value:.0f} %"
    if value < 0.01:
        return "under 0.01 %"
    if value > 99.9:
        return "over 99.9 %"
    return f"{value:.2g} %" if value < 10 else f"{value:.3g} %"


def headline(found: Comparison, made: Made) -> list[str]:
    """What came of it, in sentences, the most important first."""
    return [text for text in _sentences(found, made) if text]


def _sentences(found: Comparison, made: Made) -> Iterator[str]:
    rows = found.rows
    if not rows:
        yield f"Nothing could be compared: none of {_count(found.looked_at, 'request')} has an answer of both."
    elif not found.bits:
        yield f"All {_count(rows, 'answer')} are the same to the last bit." if rows > 1 else "The answer is the same."
    else:
        numbers = any(isinstance(output, NumberOutput) for output in found.outputs)
        labels = any(isinstance(output, LabelOutput) for output in found.outputs)
        how = f" by more than {number(found.terms.tolerance)}" if numbers else ""
        other = ", or to another label" if numbers and labels else ""
        share = percent(found.changed / rows)
        yield f"{found.changed:,} of {_count(rows, 'answer')} ({share}) change{how}{other}."
        yield _decisions(found)
        yield _sizes(found)
        yield from _where(found)
    if found.unfit:
        yield f"{_count(found.unfit, 'request')} would be refused: the inputs do not fit {made.version}."
    if found.failed.total:
        yield f"{made.version} fails on {_count(found.failed.total, 'request')}."
    if not made.is_whole:
        yield f"This is partial: it was ended after {found.looked_at:,} of {_count(made.wanted, 'request')}."


def _decisions(found: Comparison) -> str:
    deciding = [output for output in found.outputs if output.decides]
    numbers = [output for output in deciding if isinstance(output, NumberOutput)]
    if not deciding:
        return ""
    threshold = number(found.terms.threshold)
    if len(numbers) < len(deciding):
        beside = f", or cross {threshold}" if numbers else ""
        return f"{found.flips:,} decide otherwise: they have another label{beside}."
    both = numbers[0]
    way = f" ({both.raised:,} upwards, {both.lowered:,} downwards)" if len(numbers) == 1 and both.flips else ""
    return f"{found.flips:,} cross {threshold}{way}." if found.flips else f"None crosses {threshold}."


def _sizes(found: Comparison) -> str:
    """How large changes are, of the number that changed most."""
    numbers = [output for output in most_changed(found.outputs) if isinstance(output, NumberOutput) and output.bits]
    if not numbers:
        return ""
    half, most = numbers[0].difference.sizes((0.5, 0.99))
    largest = max(abs(numbers[0].difference.low), abs(numbers[0].difference.high))
    named = f"{numbers[0].name}: half" if len(found.outputs) > 1 else "Half"
    return (
        f"{named} of all answers change by at most {number(half)}, 99 of 100 by at most {number(most)}, "
        f"and none by more than {number(largest)}."
    )


def _where(found: Comparison) -> Iterator[str]:
    """Where it is told in one sentence: the strongest concentration that is much more than elsewhere."""
    told = False
    for what, concentrations in (
        ("Other decisions", found.flips_concentrate()), ("Changes", found.changes_concentrate())
    ):  # fmt: skip
        clear = [each for each in concentrations if each.share >= CLEAR * each.elsewhere]
        if clear:
            told = True
            most = clear[0]
            yield (
                f"{what} concentrate where {most.feature} {most.condition}: {percent(most.share)} of {most.rows:,} "
                f"answers there, {percent(most.elsewhere)} elsewhere."
            )
    if not told and found.changed:
        yield "No feature alone tells the answers that change from the others."


def to_json(found: Comparison, made: Made) -> dict[str, Any]:
    """Everything as plain values; the fields are those of docs/replay.md."""
    return {
        "model_id": made.model_id,
        "candidate": {
            "version": made.version,
            "digest": made.digest,
            "from": made.place,
            "engines": dict(made.engines),
        },
        "against": [
            {
                "version": each.version,
                "digest": each.digest,
                "requests": each.events,
                "answers": each.rows,
                "changed": each.changed,
            }
            for each in found.versions.values()
        ],
        "complete": made.is_whole,
        "headline": headline(found, made),
        "tolerance": found.terms.tolerance,
        "threshold": found.terms.threshold,
        "requests": found.events,
        "answers": found.rows,
        "changed": found.changed,
        "changed_percent": found.percent,
        "changed_bits": found.bits,
        "flips": found.flips,
        "changed_by_more_than": {f"{least:g}": count for least, count in zip(LADDER, found.beyond, strict=True)},
        "outputs": [_output(each) for each in found.outputs],
        "changes_concentrate": [_concentration(each) for each in found.changes_concentrate()],
        "flips_concentrate": [_concentration(each) for each in found.flips_concentrate()],
        "features": [
            {"feature": each.feature, "slices": [slice_json(one) for one in each.slices]} for each in found.slices()
        ],
        "over_time": [{**slice_json(each), "label": moment((each.low or 0.0) * 1e6)} for each in found.times.slices()],
        "largest_changes": [_example(each) for each in found.examples()],
        "does_not_fit": {
            "requests": found.unfit,
            "reasons": [
                {
                    "feature": each.feature,
                    "why": each.expected,
                    "requests": count,
                    "example": found.misfit_values.get(each, ""),
                }
                for each, count in found.misfits.most_common()
            ],
        },
        "fails": {
            "requests": found.failed.total,
            "reasons": dict(found.failed.counts),
            "request_ids": dict(found.failed.examples),
        },
        "left_out": {
            "requests": found.left_out.total,
            "reasons": {str(why): count for why, count in found.left_out.counts.items()},
            "examples": {str(why): text for why, text in found.left_out.examples.items()},
        },
        "defaulted_features": dict(found.defaulted),
        "outputs_without_counterpart": dict(found.dropped_outputs),
        "versions_not_to_be_had": dict(made.unknown),
        "engines_then": dict(found.engines),
        "runtime": dict(made.runtime),
        "runtime_differences": dict(made.runtime_differences),
        "asked_from": moment(found.first_us),
        "asked_to": moment(found.last_us),
        "last_sequence": found.last_sequence,
        "command": made.command,
        "made_at": made.at.isoformat(timespec="seconds"),
    }


def quantiles_of(output: NumberOutput) -> list[tuple[float, float, float, float]]:
    """Part, then, now, difference."""
    columns = (
        output.then.quantiles(QUANTILES),
        output.now.quantiles(QUANTILES),
        output.difference.quantiles(QUANTILES),
    )
    return list(zip(QUANTILES, *columns, strict=True))


def _concentration(each: Concentration) -> dict[str, Any]:
    return {
        "feature": each.feature,
        "condition": each.condition,
        "answers": each.rows,
        "counted": each.changed,
        "share": each.share,
        "share_between": each.between,
        "share_elsewhere": each.elsewhere,
        "log_likelihood_ratio": each.strength,
    }


def slice_json(each: Slice) -> dict[str, Any]:
    return {
        "label": each.label,
        "low": each.low,
        "high": each.high,
        "answers": each.rows,
        "changed": each.changed,
        "share": each.share,
        "share_between": each.between,
        "flips": each.flips,
        "mean_difference": each.mean_size,
    }


def moment(micros: float | None) -> str:
    """A time in microseconds since the Unix epoch as RFC 3339, UTC; empty for none."""
    if micros is None:
        return ""
    try:
        return datetime.fromtimestamp(micros / 1e6, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return ""


def _output(output: Compared) -> dict[str, Any]:
    content: dict[str, Any] = {
        "name": output.name,
        "answers": output.rows,
        "changed_bits": output.bits,
        "changed": output.beyond,
        "share_between": wilson(output.beyond, output.rows),
        "flips": output.flips,
    }
    if isinstance(output, LabelOutput):
        return content | {
            "kind": "label",
            "transitions": [
                {"then": then, "now": now, "answers": count} for (then, now), count in output.transitions.most_common()
            ],
        }
    return content | {
        "kind": "number",
        "is_probability": output.decides,
        "raised": output.raised,
        "lowered": output.lowered,
        "not_finite": output.broken,
        "difference": {
            "mean": plain(output.difference.mean),
            "mean_absolute": plain(output.difference.mean_size),
            "smallest": plain(output.difference.low),
            "largest": plain(output.difference.high),
        },
        "quantiles": [
            {"part": part, "then": plain(then), "now": plain(now), "difference": plain(difference)}
            for part, then, now, difference in quantiles_of(output)
        ],
    }


def _example(each: Example) -> dict[str, Any]:
    return {
        "request_id": each.event.request_id,
        "number": each.event.number,
        "row": each.row,
        "asked": moment(each.event.asked_us),
        "version": each.event.version,
        "inputs": plain_mapping(each.inputs),
        "then": plain_mapping(each.then),
        "now": plain_mapping(each.now),
        "largest_difference": plain(each.size),
        "flips": each.flips,
    }


def plain_mapping(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: plain(value) for name, value in values.items()}


def _count(many: int, what: str) -> str:
    return f"{many:,} {what}" + ("" if many == 1 else "s")


def most_changed(outputs: Sequence[Compared]) -> list[Compared]:
    """The outputs that changed most first."""
    return sorted(outputs, key=lambda each: (-each.beyond, -each.bits))
