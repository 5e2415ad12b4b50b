"""predict, submit and result: asking a model from a terminal."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from millstream.cli.errors import DEADLINE, USAGE, CommandFailed
from millstream.cli.options import AddressOption, JsonOption, QuietOption, StateDirOption
from millstream.cli.place import Place
from millstream.cli.screen import Screen

if TYPE_CHECKING:
    from ingest.answer import Answer, PredictionError
    from millstream.client import Client
    from protos import millstream_v1_pb2 as v1

ROWS_PER_REQUEST = 10_000
_INPUT = "Input"

ModelArgument = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL]", help="The model; left out, you choose one and are asked for each value."),
]
ValuesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[VALUE]...", help="One value per feature, in the model's order.")
]
FeatureOption = Annotated[
    list[str] | None,
    typer.Option(
        "-f", "--feature", metavar="NAME=VALUE", help="One feature by name; repeatable.", rich_help_panel=_INPUT
    ),
]
RowsOption = Annotated[
    Path | None,
    typer.Option(
        "--rows", metavar="FILE", help="Many rows: a CSV file with a header, or JSON lines.", rich_help_panel=_INPUT
    ),
]
EntityOption = Annotated[
    str,
    typer.Option(
        "--entity", metavar="ID", help="Whose stored features fill in what you leave out.", rich_help_panel=_INPUT
    ),
]
VersionOption = Annotated[
    str,
    typer.Option("--version", metavar="V", help="Ask this version instead of the live one.", rich_help_panel=_INPUT),
]
RequestIdOption = Annotated[
    str,
    typer.Option(
        "--request-id",
        metavar="ID",
        help="Your own id: the same id again gives the first answer.",
        rich_help_panel=_INPUT,
    ),
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", min=0.001, help="Longest time to wait for an answer.")
]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says of one request."""

    model_id: str | None
    values: tuple[str, ...]
    named: tuple[str, ...]
    rows: Path | None
    entity_id: str
    version: str
    request_id: str

    def check(self) -> None:
        """Raises CommandFailed where parts do not go together."""
        # Values may begin with a minus, so typer passes on what it does not know; an option is no value.
        for text in self.values:
            if re.match(r"--|-[A-Za-z]", text):
                raise CommandFailed(f"no such option: {text}; `millstream predict --help` lists them", USAGE)
        forms = [
            name
            for name, given in (("VALUE", self.values), ("-f NAME=VALUE", self.named), ("--rows FILE", self.rows))
            if given
        ]
        if len(forms) > 1:
            raise CommandFailed(f"give one of VALUE, -f NAME=VALUE and --rows FILE; {' and '.join(forms)} came", USAGE)
        if self.rows and (self.entity_id or self.request_id):
            raise CommandFailed("--rows goes with neither --entity nor --request-id", USAGE)

    @property
    def to_be_filled_in(self) -> bool:
        """Whether a person is to be asked for the features."""
        return not (self.values or self.named or self.rows or (self.entity_id and self.model_id))


def predict(
    model: ModelArgument = None,
    values: ValuesArgument = None,
    feature: FeatureOption = None,
    rows: RowsOption = None,
    entity: EntityOption = "",
    version: VersionOption = "",
    request_id: RequestIdOption = "",
    timeout: TimeoutOption = 30.0,
    state_dir: StateDirOption = None,
    address: AddressOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Ask a model and wait for its answer.

    Without arguments you pick a model and are asked for each value.

    [bold]Examples[/bold]

      millstream predict
      millstream predict credit_risk 0.6 45
      millstream predict churn -f age=25 -f clicks=120
      millstream predict churn --entity 101
      millstream predict credit_risk --rows people.csv --json
    """
    screen = Screen(as_json=as_json, quiet=quiet)
    asked = Asked(model, tuple(values or ()), tuple(feature or ()), rows, entity, version, request_id)
    asked.check()
    with Place.of(state_dir, gateway=address).client(timeout) as client:
        began = time.monotonic()
        for first, form, whole in _requests(client, asked, screen):
            if first is None:
                began = time.monotonic()  # a person's typing is not the model's time
                answer = client.predict(**form)
                _show(screen, answer, time.monotonic() - began)
            else:
                with _in_file(first):
                    _show_rows(screen, client.predict(**form), whole, first)


def submit(
    model: ModelArgument = None,
    values: ValuesArgument = None,
    feature: FeatureOption = None,
    rows: RowsOption = None,
    entity: EntityOption = "",
    version: VersionOption = "",
    request_id: RequestIdOption = "",
    discard_reply: Annotated[
        bool, typer.Option("--discard-reply", help="Nobody will read the answer: only the event log keeps it.")
    ] = False,
    timeout: TimeoutOption = 30.0,
    state_dir: StateDirOption = None,
    address: AddressOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Leave a request to be answered later, and print its id.

    [bold]Examples[/bold]

      millstream submit credit_risk 0.6 45
      millstream result credit_risk REQUEST_ID --wait 5
    """
    screen = Screen(as_json=as_json, quiet=quiet)
    asked = Asked(model, tuple(values or ()), tuple(feature or ()), rows, entity, version, request_id)
    asked.check()
    with Place.of(state_dir, gateway=address).client(timeout) as client:
        for first, form, _ in _requests(client, asked, screen):
            with _in_file(first or 1):
                made = client.submit(**form, discard_reply=discard_reply)
            if screen.as_json:
                screen.line({"request_id": made, "model_id": form["model_id"]})
            else:
                screen.text(made)
            if not discard_reply:
                screen.note(f"read the answer with: millstream result {form['model_id']} {made} --wait 5")


def result(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model that was asked.")],
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="The id that `submit` printed.")],
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", min=0.0, help="How long to wait for a pending answer.")
    ] = 0.0,
    state_dir: StateDirOption = None,
    address: AddressOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Read the answer to a submitted request.

    Ends with code 6 while it is pending, 4 when the id is unknown or its answer expired.

    [bold]Example[/bold]

      millstream result credit_risk REQUEST_ID --wait 5
    """
    from millstream.client import Pending

    screen = Screen(as_json=as_json, quiet=quiet)
    with Place.of(state_dir, gateway=address).client() as client:
        answer = client.result(model, request_id, wait=wait)
    if isinstance(answer, Pending):
        raise CommandFailed(f"{request_id} is accepted and not answered yet; wait longer with --wait", DEADLINE)
    _show(screen, answer, None)


def _requests(client: Client, asked: Asked, screen: Screen) -> Iterator[tuple[int | None, dict[str, Any], v1.Model]]:
    """The arguments of each call, with the number of its first row where they come from a file."""
    from millstream.cli.ask import choose_model, fill_in, from_stdin
    from millstream.cli.models import list_models
    from millstream.cli.values import features_of, inputs_of, named_of, read_rows

    if asked.model_id is None:
        models = sorted(client.models(), key=lambda each: each.model_id)
        if not models:
            raise CommandFailed("no model is live yet: see `millstream registry list`", USAGE)
        list_models(Screen(quiet=screen.quiet), models, numbered=True, on_stderr=True)
        chosen = choose_model(models, from_stdin, screen.note)
        # The list has the live version's features; another one's may differ.
        model = client.model(chosen.model_id, asked.version) if asked.version else chosen
    else:
        model = client.model(asked.model_id, asked.version)
    form: dict[str, Any] = {"model_id": model.model_id, "version": asked.version}
    features = features_of(model)
    if asked.rows:
        for first, table, ignored in read_rows(asked.rows, features, ROWS_PER_REQUEST):
            if ignored and first == 1:
                screen.note(f"columns that {model.model_id} does not take: {', '.join(ignored)}")
            # The order is this version's, so it is this version that is asked.
            yield first, {**form, "rows": table, "version": model.version}, model
        return
    form |= {"entity_id": asked.entity_id, "request_id": asked.request_id}
    if asked.to_be_filled_in:
        filled = fill_in(model, from_stdin, screen.note, asked.entity_id)
        yield None, {**form, "features": filled.features or None, "entity_id": filled.entity_id}, model
    elif asked.values:
        yield None, {**form, "inputs": inputs_of(asked.values, features)}, model
    else:
        yield None, {**form, "features": named_of(asked.named, features) or None}, model


class _in_file:  # noqa: N801 - read as part of a with statement
    """Numbers the rows of a refusal as the file does, where a request holds only a part of it."""

    def __init__(self, first: int) -> None:
        self._first = first

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        from ingest.answer import InvalidInput

        if isinstance(error, InvalidInput):
            _renumber(error, self._first)


def _renumber(error: PredictionError, first: int) -> None:
    from contract.errors import Violation

    def in_file(text: str) -> str:
        return re.sub(r"rows\[(\d+)\]", lambda found: f"row {int(found[1]) + first}", text)

    error.message = in_file(error.message)
    error.violations = tuple(Violation(in_file(v.field), v.description) for v in error.violations)


def _show(screen: Screen, answer: Answer, seconds: float | None) -> None:
    if screen.as_json:
        screen.line(answer.to_json())
        return
    title = f"{answer.model_id} {answer.version}"
    predictions = answer.predictions
    if len(predictions) == 1:
        screen.table(("output", "value"), list(predictions[0].items()), title=title)
    else:
        _rows_table(screen, predictions, title, 1)
    took = f" in {seconds * 1000:.1f} ms" if seconds is not None else ""
    screen.note(f"request {answer.request_id}, answered{took}")
    if answer.degraded:
        screen.note("degraded: the feature store was late or gone, a fallback value was used")


def _show_rows(screen: Screen, answer: Answer, model: v1.Model, first: int) -> None:
    if not screen.as_json:
        _rows_table(screen, answer.predictions, f"{model.model_id} {answer.version}" if first == 1 else "", first)
        return
    for number, outputs in enumerate(answer.predictions, start=first):
        screen.line(
            {
                "row": number,
                "outputs": outputs,
                "model_id": answer.model_id,
                "version": answer.version,
                "request_id": answer.request_id,
            }
        )


def _rows_table(screen: Screen, predictions: list[dict[str, Any]], title: str, first: int) -> None:
    names = list(predictions[0]) if predictions else []
    rows = [[number, *row.values()] for number, row in enumerate(predictions, start=first)]
    screen.table(("row", *names), rows, title=title)
