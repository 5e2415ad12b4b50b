"""The parts of a signature, read from their JSON; each problem is kept with its path, and reading goes on."""

from __future__ import annotations

import re

from contract.id_pattern import DEFAULT_PATTERN, IdPatternError, compile_id_pattern
from contract.signature_fields import Fields
from contract.signature_parts import (
    CALLS,
    STORE_ERROR_POLICIES,
    VALUE_TYPES,
    Entity,
    Feature,
    Golden,
    KeyTemplate,
    KeyTemplateError,
    Output,
    Value,
    ValueType,
    shown,
    typed_value,
)

MAX_FEATURES = 10_000
MAX_GOLDEN = 100

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def check_name(fields: Fields, name: str) -> None:
    """A name people and programs read: of a feature, an output or an entity."""
    if not 1 <= len(name) <= 200 or _CONTROL.search(name):
        fields.problem("name", f"expected 1 to 200 characters, none of them control characters, got {shown(name)}")


def check_file_name(fields: Fields, name: str, file: str) -> None:
    """A path below the version's folder."""
    segments = file.split("/")
    if len(file) > 1024 or "\\" in file or _CONTROL.search(file) or any(part in ("", ".", "..") for part in segments):
        fields.problem(name, f"expected a file beside signature.json, got {shown(file)}")


def read_transforms(fields: Fields, model_file: str | None) -> tuple[str, ...]:
    """The files applied before the model, in order."""
    files: list[str] = []
    for place, file in enumerate(fields.items("transforms", 0, 100) or ()):
        name = f"transforms[{place}]"
        if not isinstance(file, str):
            fields.problem(name, f"expected a file name, got {shown(file)}")
        elif file == model_file:
            fields.problem(name, f"{shown(file)} is the model_file already")
        else:
            check_file_name(fields, name, file)
            files.append(file)
    return tuple(files)


def read_features(fields: Fields) -> tuple[Feature, ...] | None:
    """The features in index order; None where one of them had a problem."""
    items = fields.items("expected_features", 1, MAX_FEATURES)
    if items is None:
        if not fields.has("expected_features"):
            fields.missing("expected_features", "a list of features")
        return None
    features: dict[int, Feature] = {}
    names: dict[str, int] = {}
    indices: dict[int, int] = {}
    for place, item in enumerate(items):
        each = Fields(item, f"expected_features[{place}]", fields.findings)
        index = each.whole("index")
        if index is None and not each.has("index"):
            each.missing("index", f"a position from 0 to {len(items) - 1}")
        elif index is not None and index >= len(items):
            each.problem("index", f"expected 0 to {len(items) - 1}, each once, got {index}")
        elif index is not None and indices.setdefault(index, place) != place:
            each.problem("index", f"expected each index once; {index} is taken by expected_features[{indices[index]}]")
        name = each.required_text("name", "a name")
        if name is not None:
            check_name(each, name)
        if name is not None and names.setdefault(name, place) != place:
            each.problem("name", f"expected unique names; {shown(name)} is taken by expected_features[{names[name]}]")
        kind = each.choice("type", VALUE_TYPES)
        feature = _feature(each, index or 0, name or "", kind or "float", typed=kind is not None)
        if index is not None and feature is not None:
            features[index] = feature
    if sorted(features) != list(range(len(items))):
        return None
    return tuple(features[index] for index in range(len(items)))


def _feature(fields: Fields, index: int, name: str, kind: ValueType, *, typed: bool) -> Feature | None:
    """One feature; without its type known, values can't be looked at, and only what is free of it is read."""
    before = len(fields.findings.problems)
    nullable = fields.flag("nullable")
    if nullable and typed and kind in ("int", "bool"):
        fields.problem("nullable", f"expected only on float and string, not on {kind}, which has no null")
    bounds: dict[str, float | int | None] = {}
    for bound in ("min", "max"):
        number = fields.number(bound)
        if number is not None and typed:
            converted = typed_value(number, kind) if kind in ("float", "int") else None
            if converted is None or isinstance(converted, str):
                fields.problem(
                    bound, f"expected a bound only on a float or int, of its type, got {shown(number)} on {kind}"
                )
            else:
                bounds[bound] = converted
    low, high = bounds.get("min"), bounds.get("max")
    if low is not None and high is not None and low > high:
        fields.problem("min", f"expected min of at most max, got {low} and {high}")
    unbound = Feature(index, name, kind, nullable=nullable, min=low, max=high)
    categories = _categories(fields, unbound) if typed else None
    store_key = _key_template(fields, "store_key")
    unit, description = fields.text("unit") or "", fields.text("description") or ""
    base = Feature(index, name, kind, nullable=nullable, categories=categories, min=low, max=high)
    default, example = fields.raw("default"), fields.raw("example")
    taken: dict[str, Value] = {}
    if typed and len(fields.findings.problems) == before:
        for each, value in (("default", default), ("example", example)):
            if fields.has(each):
                try:
                    taken[each] = base.accept(value)
                except ValueError as error:
                    fields.problem(each, str(error))
    fields.finish()
    if not typed or not fields.is_object or len(fields.findings.problems) > before:
        return None
    return Feature(
        index=index,
        name=name,
        type=kind,
        has_default=fields.has("default"),
        default=taken.get("default"),
        nullable=nullable,
        categories=categories,
        min=low,
        max=high,
        store_key=store_key,
        example=taken.get("example"),
        unit=unit,
        description=description,
    )


def _categories(fields: Fields, unbound: Feature) -> tuple[Value, ...] | None:
    categories: dict[Value, None] = {}
    for place, item in enumerate(fields.items("categories", 1, 10_000) or ()):
        try:
            value = unbound.accept(item) if item is not None else None
        except ValueError as error:
            fields.problem(f"categories[{place}]", str(error))
            continue
        if value is None:
            fields.problem(f"categories[{place}]", "expected no null; `nullable` allows it beside the categories")
        elif value in categories:
            fields.problem(f"categories[{place}]", f"expected each once; {shown(value)} is there twice")
        else:
            categories[value] = None
    return tuple(categories) or None


def _key_template(fields: Fields, name: str) -> KeyTemplate | None:
    text = fields.text(name, "a key such as user:{id}:{feature}")
    if text is None:
        return None
    try:
        if len(text) > 512:
            raise KeyTemplateError(f"expected a key of at most 512 characters, got {len(text)}")
        return KeyTemplate.parse(text)
    except KeyTemplateError as error:
        fields.problem(name, str(error))
        return None


def read_outputs(fields: Fields) -> tuple[Output, ...]:
    """The outputs; one called `prediction` where none are named."""
    outputs: dict[str, Output] = {}
    items = fields.items("outputs", 1, 1000)
    for place, item in enumerate(items or ()):
        each = Fields(item, f"outputs[{place}]", fields.findings)
        name = each.required_text("name", "a name")
        if name is not None:
            check_name(each, name)
        if name is not None and name in outputs:
            each.problem("name", f"expected unique names; {shown(name)} is there twice")
        call = each.choice("call", CALLS, absent="predict")
        label = each.raw("class")
        if each.has("class") and (label is None or isinstance(label, list | dict)):
            each.problem("class", "expected a label: a string, a number, true or false")
            label = None
        if each.has("class") and call != "predict_proba":
            each.problem("class", f"expected only with predict_proba, which has a column per label, got {call}")
        column = each.whole("column")
        if column is not None and each.has("class"):
            each.problem("column", "expected either class or column, got both")
        kind = each.choice("type", VALUE_TYPES, absent="float") if each.has("type") else None
        if kind not in (None, "float") and call != "predict":
            each.problem("type", f"expected float, as {call} answers, got {kind}")
        each.finish()
        if name is not None and not isinstance(label, list | dict):
            outputs[name] = Output(name, call, label, column, kind)
    return tuple(outputs.values()) or (Output("prediction"),)


def read_entity(fields: Fields) -> Entity | None:
    """The entity; None where there was a problem."""
    before = len(fields.findings.problems)
    name = fields.text("name")
    if name is not None:
        check_name(fields, name)
    key = _key_template(fields, "key")
    if key is None and not fields.has("key"):
        fields.missing("key", "where the features are, such as user:{id}:{feature}")
    pattern = fields.text("pattern", "a regular expression")
    if pattern is not None:
        try:
            compile_id_pattern(pattern)
        except IdPatternError as error:
            fields.problem("pattern", str(error))
    policy = fields.choice("on_store_error", STORE_ERROR_POLICIES, absent="default")
    fields.finish()
    if key is None or len(fields.findings.problems) > before:
        return None
    return Entity(key, name or "entity_id", DEFAULT_PATTERN if pattern is None else pattern, policy)


def read_golden(
    fields: Fields, features: tuple[Feature, ...] | None, outputs: tuple[Output, ...]
) -> tuple[Golden, ...]:
    """The golden examples, their inputs in index order; `features` is None where they had problems."""
    examples: list[Golden] = []
    for place, item in enumerate(fields.items("golden", 0, MAX_GOLDEN) or ()):
        each = Fields(item, f"golden[{place}]", fields.findings)
        if not each.is_object:
            continue
        inputs = _golden_inputs(each, features)
        answers = _golden_outputs(each, outputs)
        tolerance = each.number("tolerance") or 0
        if tolerance < 0:
            each.problem("tolerance", f"expected at least 0, got {tolerance}")
        each.finish()
        examples.append(Golden(inputs, answers, float(tolerance)))
    return tuple(examples)


def _golden_inputs(fields: Fields, features: tuple[Feature, ...] | None) -> tuple[Value, ...]:
    sent = fields.raw("inputs")
    if not isinstance(sent, list | dict):
        expected = "a list by position or an object by name"
        fields.problem("inputs", f"expected {expected}, got {shown(sent) if fields.has('inputs') else 'nothing'}")
        return ()
    if features is None:
        return ()  # what is wrong with the features comes first
    if isinstance(sent, list) and len(sent) != len(features):
        fields.problem("inputs", f"expected {len(features)} values, got {len(sent)}")
        return ()
    by_name = sent if isinstance(sent, dict) else dict(zip((each.name for each in features), sent, strict=True))
    known = {feature.name for feature in features}
    for name in by_name:
        if name not in known:
            fields.problem("inputs", f"no feature is called {shown(name)}")
    values: list[Value] = []
    for feature in features:
        if feature.name in by_name:
            try:
                values.append(feature.accept(by_name[feature.name]))
            except ValueError as error:
                fields.problem(f"inputs.{feature.name}", str(error))
        elif feature.has_default:
            values.append(feature.default)
        else:
            fields.problem(f"inputs.{feature.name}", f"missing; expected {feature.expected}")
    return tuple(values)


def _golden_outputs(fields: Fields, outputs: tuple[Output, ...]) -> tuple[tuple[str, Value], ...]:
    answers = fields.raw("outputs")
    if not isinstance(answers, dict) or not answers:
        fields.problem("outputs", "expected an object of named outputs")
        return ()
    values: list[tuple[str, Value]] = []
    for name, value in answers.items():
        # A call with several columns and none chosen answers name.<label> for each; which there are, the model knows.
        if not any(name == output.name or name.startswith(f"{output.name}.") for output in outputs):
            fields.problem("outputs", f"no output is called {shown(name)}")
        elif isinstance(value, list | dict):
            fields.problem(f"outputs.{name}", "expected a number, true, false, a string or null")
        else:
            values.append((name, value))
    return tuple(sorted(values))
