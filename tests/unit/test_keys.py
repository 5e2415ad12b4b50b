"""Keys: one slot per model, under a prefix."""

from __future__ import annotations

from dataclasses import fields

import pytest
from redis.crc import key_slot

from contract.keys import Keys, ModelKeys


@pytest.mark.parametrize("model_id", ["churn", "a", "A-1_2.3", "x" * 128])
def test_all_keys_of_a_model_are_in_one_slot(model_id: str) -> None:
    keys = Keys("ms").model(model_id)
    names = [getattr(keys, field.name) for field in fields(ModelKeys)]
    names += [keys.reply("{other}:r1"), keys.replies("host-1-abc")]
    assert {key_slot(name.encode()) for name in names} == {key_slot(model_id.encode())}


def test_keys_are_named_as_the_contract_says() -> None:
    keys = Keys("ms").model("churn")
    assert keys.requests == "ms:{churn}:requests"
    assert keys.bulk == "ms:{churn}:bulk"
    assert keys.events == "ms:{churn}:events"
    assert keys.dead == "ms:{churn}:dead"
    assert keys.crashes == "ms:{churn}:crashes"
    assert keys.count == "ms:{churn}:count"
    assert (keys.rows_requests, keys.rows_bulk) == ("ms:{churn}:rows:requests", "ms:{churn}:rows:bulk")
    assert keys.reply("r1") == "ms:{churn}:reply:r1"
    assert keys.replies("g1") == "ms:{churn}:replies:g1"
    assert Keys("ms").catalog == "ms:catalog"
    assert Keys("ms").catalog_revision == "ms:catalog:rev"
    assert Keys("ms").presence("worker", "w1") == "ms:proc:worker:w1"
    assert Keys("ms").chunk("ab12", 0) == "ms:{ab12}:0"


def test_no_two_names_are_the_same() -> None:
    one, other = Keys("ms").model("churn"), Keys("ms").model("churn2")
    names = [getattr(keys, field.name) for keys in (one, other) for field in fields(ModelKeys)]
    assert len(set(names)) == len(names)


def test_every_key_begins_with_the_prefix() -> None:
    keys = Keys("own")
    names = [keys.catalog, keys.catalog_revision, keys.runtimes, keys.roll("worker"), keys.presence("worker", "w")]
    assert all(name.startswith("own:") for name in [*names, keys.chunk("ab", 1), keys.model("m").dead])
