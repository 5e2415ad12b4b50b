"""The tables of registry.duckdb, and what older files lack of them."""

from __future__ import annotations

import duckdb

_SCHEMA = """
CREATE TABLE IF NOT EXISTS models (
    model_id VARCHAR PRIMARY KEY, revision UBIGINT NOT NULL, record BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS versions (
    model_id VARCHAR, version VARCHAR, digest VARCHAR NOT NULL, signature_json BLOB NOT NULL,
    trained_date VARCHAR NOT NULL, location VARCHAR NOT NULL, tag VARCHAR NOT NULL, place VARCHAR NOT NULL,
    refused VARCHAR NOT NULL, first_seen TIMESTAMPTZ NOT NULL, PRIMARY KEY (model_id, version));
CREATE TABLE IF NOT EXISTS artifacts (
    model_id VARCHAR NOT NULL, version VARCHAR NOT NULL, name VARCHAR NOT NULL, sha256 VARCHAR NOT NULL,
    size UBIGINT NOT NULL, blob VARCHAR NOT NULL, etag VARCHAR NOT NULL);
CREATE TABLE IF NOT EXISTS places (
    place VARCHAR PRIMARY KEY, fingerprint VARCHAR NOT NULL, model_id VARCHAR NOT NULL, version VARCHAR NOT NULL,
    digest VARCHAR NOT NULL, tag VARCHAR NOT NULL, location VARCHAR NOT NULL, problem VARCHAR NOT NULL,
    warnings VARCHAR[] NOT NULL, first_seen TIMESTAMPTZ NOT NULL);
CREATE TABLE IF NOT EXISTS history (
    noted TIMESTAMPTZ NOT NULL, model_id VARCHAR NOT NULL, version VARCHAR NOT NULL, digest VARCHAR NOT NULL,
    act VARCHAR NOT NULL, detail VARCHAR NOT NULL);
CREATE TABLE IF NOT EXISTS statements (
    said TIMESTAMPTZ NOT NULL, model_id VARCHAR NOT NULL, version VARCHAR NOT NULL, digest VARCHAR NOT NULL,
    kind VARCHAR NOT NULL, word VARCHAR NOT NULL, who VARCHAR NOT NULL, basis_points UINTEGER NOT NULL,
    salt VARCHAR NOT NULL, abort_over DOUBLE NOT NULL);
CREATE TABLE IF NOT EXISTS gates (
    model_id VARCHAR PRIMARY KEY, policy VARCHAR NOT NULL, row_limit UINTEGER NOT NULL, changed DOUBLE NOT NULL,
    tolerance DOUBLE NOT NULL);
CREATE TABLE IF NOT EXISTS sightings (
    place VARCHAR PRIMARY KEY, fingerprint VARCHAR NOT NULL, seen TIMESTAMPTZ NOT NULL);
ALTER TABLE history ADD COLUMN IF NOT EXISTS who VARCHAR DEFAULT '';
"""

# A file from before there was a timeline says which tag each version has and not since when: all of a model's count
# from one moment, so that the highest one goes on being the one that is wanted.
_TAGS_OF_BEFORE = """
INSERT INTO statements
SELECT max(first_seen) OVER (PARTITION BY model_id), model_id, version, digest, 'tag', tag, '', 0, '', 0
FROM versions WHERE model_id NOT IN (SELECT model_id FROM statements);
"""


def prepare(db: duckdb.DuckDBPyConnection) -> None:
    """Makes the tables that are missing, in one transaction. Raises duckdb.Error."""
    db.begin()
    db.execute(_SCHEMA)
    db.execute(_TAGS_OF_BEFORE)
    db.commit()
