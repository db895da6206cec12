"""The records of jobs and deployments in a relational database: SQLite by default, any SQLAlchemy URL."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.errors import NotFound, StoreError
from orchestrator.ports import Entry, Json, Record, RecordKind

_metadata = MetaData()
_records = Table(
    "records",
    _metadata,
    Column("id", String(64), primary_key=True),
    Column("kind", String(32), nullable=False, index=True),
    Column("state", String(32), nullable=False),
    Column("created_at", Float, nullable=False, index=True),
    Column("ended_at", Float),
    Column("reason", Text),
    Column("spec", JSON, nullable=False),
    Column("summary", JSON, nullable=False),
)
_entries = Table(
    "entries",
    _metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("record", String(64), ForeignKey("records.id"), nullable=False),
    Column("at", Float, nullable=False),
    Column("type", String(32), nullable=False),
    Column("body", JSON, nullable=False),
    Index("entries_by_record", "record", "type", "sequence"),
    sqlite_autoincrement=True,
)


class SqlStore:
    """Keeps records in the database at `url`; safe to use from many threads."""

    def __init__(self, url: str) -> None:
        """Open the database, making its tables on first use.

        Raises:
            StoreError: it cannot be opened or written.
        """
        self._url = url
        # SQLite takes one writer at a time: queue here rather than meet "database is locked".
        self._writing = threading.Lock()
        try:
            self._engine = create_engine(url)
            if self._engine.dialect.name == "sqlite":
                event.listen(self._engine, "connect", _tune_sqlite)
            _metadata.create_all(self._engine)
        except SQLAlchemyError as error:
            raise StoreError(f"the store {url} cannot be opened: {error}; check state_dir") from error

    def close(self) -> None:
        """Give the database's connections back."""
        self._engine.dispose()

    def add(self, record: Record) -> None:
        """Keep a new record."""
        with self._write() as connection:
            connection.execute(
                insert(_records).values(
                    id=record.id,
                    kind=record.kind,
                    state=record.state,
                    created_at=record.created_at,
                    ended_at=record.ended_at,
                    reason=record.reason,
                    spec=record.spec,
                    summary=record.summary,
                )
            )

    def update(
        self,
        record_id: str,
        *,
        state: str | None = None,
        ended_at: float | None = None,
        reason: str | None = None,
        summary: Json | None = None,
    ) -> None:
        """Change the named things of a record; None leaves a thing as it is."""
        named = {"state": state, "ended_at": ended_at, "reason": reason, "summary": summary}
        values = {key: value for key, value in named.items() if value is not None}
        with self._write() as connection:
            changed = connection.execute(update(_records).where(_records.c.id == record_id).values(**values))
            if changed.rowcount == 0:
                raise NotFound(f"there is no record {record_id!r}")

    def get(self, record_id: str) -> Record:
        """Give one record."""
        with self._read() as connection:
            row = connection.execute(select(_records).where(_records.c.id == record_id)).one_or_none()
        if row is None:
            raise NotFound(f"there is no record {record_id!r}")
        return _record(row)

    def records(
        self, *, kind: RecordKind | None = None, limit: int, offset: int
    ) -> tuple[Sequence[Record], int]:
        """List records, newest first, and how many there are in all."""
        wanted = _records.c.kind == kind if kind else _records.c.id.is_not(None)
        newest = select(_records).where(wanted).order_by(_records.c.created_at.desc(), _records.c.id)
        with self._read() as connection:
            total = connection.execute(select(func.count()).select_from(_records).where(wanted)).scalar_one()
            rows = connection.execute(newest.limit(limit).offset(offset)).all()
        return [_record(row) for row in rows], total

    def append(self, record_id: str, *, at: float, type: str, body: Json) -> Entry:
        """Note that something happened to a record."""
        with self._write() as connection:
            done = connection.execute(insert(_entries).values(record=record_id, at=at, type=type, body=body))
            key = done.inserted_primary_key
        assert key is not None
        return Entry(sequence=key[0], record=record_id, at=at, type=type, body=body)

    def entries(
        self, record_id: str, *, type: str | None = None, after: int = 0, limit: int, offset: int = 0
    ) -> tuple[Sequence[Entry], int]:
        """List what happened, oldest first, past sequence `after`, and how many there are in all."""
        wanted = (_entries.c.record == record_id) & (_entries.c.sequence > after)
        if type is not None:
            wanted &= _entries.c.type == type
        oldest = select(_entries).where(wanted).order_by(_entries.c.sequence).limit(limit).offset(offset)
        with self._read() as connection:
            total = connection.execute(select(func.count()).select_from(_entries).where(wanted)).scalar_one()
            rows = connection.execute(oldest).all()
        return [
            Entry(sequence=row.sequence, record=row.record, at=row.at, type=row.type, body=row.body)
            for row in rows
        ], total

    def count_records(self, kind: RecordKind) -> dict[str, int]:
        """Count the records of a kind by their state."""
        counted = select(_records.c.state, func.count()).where(_records.c.kind == kind)
        with self._read() as connection:
            rows = connection.execute(counted.group_by(_records.c.state)).all()
        return {row[0]: row[1] for row in rows}

    def count_entries(self, type: str) -> int:
        """Count the entries of a type over all records."""
        counted = select(func.count()).select_from(_entries).where(_entries.c.type == type)
        with self._read() as connection:
            return connection.execute(counted).scalar_one()

    def unfinished(self, kind: RecordKind) -> Sequence[Record]:
        """List what has not ended, newest first."""
        wanted = (_records.c.kind == kind) & _records.c.ended_at.is_(None)
        newest = select(_records).where(wanted).order_by(_records.c.created_at.desc(), _records.c.id)
        with self._read() as connection:
            return [_record(row) for row in connection.execute(newest).all()]

    def ready(self) -> str | None:
        """Answer None when the store can be used, else why not."""
        try:
            with self._read() as connection:
                connection.execute(select(func.count()).select_from(_records)).scalar_one()
        except StoreError as error:
            return str(error)
        return None

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        try:
            with self._writing, self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StoreError(f"the store {self._url} cannot be written: {error}") from error

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StoreError(f"the store {self._url} cannot be read: {error}") from error


def _record(row: Any) -> Record:
    return Record(
        id=row.id,
        kind=row.kind,
        state=row.state,
        created_at=row.created_at,
        ended_at=row.ended_at,
        reason=row.reason,
        spec=row.spec,
        summary=row.summary,
    )


def _tune_sqlite(connection: Any, _: object) -> None:
    """Let readers read while one writes, and keep what was committed if the process is killed."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA busy_timeout=5000")
    cursor.close()
