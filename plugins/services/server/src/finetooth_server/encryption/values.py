"""Encrypts arguments and results of calls in the database.

One data key encrypts all; a master key wraps it, and it is in the table `data_keys`. A value is a mark, a nonce and
AES-256-GCM ciphertext, with the call and the column as associated data. Random nonces of 96 bits are safe for 2^32
values under one key (NIST SP 800-38D, 8.3).
"""

from __future__ import annotations

import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from finetooth_hooks import UserError
from sqlalchemy import insert, select, update

from finetooth_server.encryption.master import NONCE, SIZE, MasterKeys
from finetooth_server.keeping.records import Records, calls, data_keys, now

MARK = b"\x01"
"""Prefix of an encrypted value; no plain one, which is JSON, begins with it."""

_LOG = "log"


class Values:
    """Encrypts and decrypts values of one database.

    Args:
        keys: None leaves values plain.

    Raises:
        UserError: the values are encrypted, and the key is missing.
    """

    def __init__(self, records: Records, keys: MasterKeys | None) -> None:
        self._cipher: AESGCM | None = None
        with records.write() as connection:
            row = connection.execute(select(data_keys).where(data_keys.c.id == _LOG)).first()
            if row is not None:
                if keys is None:
                    raise UserError("the database is encrypted", action="give the key with --encryption-key")
                self._cipher = AESGCM(keys.unwrap(row.wrapped, row.master, _ABOUT))
            elif keys is not None:
                key = secrets.token_bytes(SIZE)
                values = {"id": _LOG, "master": keys.current, "wrapped": keys.wrap(key, _ABOUT), "created": now()}
                connection.execute(insert(data_keys).values(values))
                self._cipher = AESGCM(key)

    @classmethod
    def unread(cls) -> Values:
        """For code that neither writes nor reads the contents of calls."""
        made = cls.__new__(cls)
        made._cipher = None
        return made

    def seal(self, value: bytes, call: str, column: str) -> bytes:
        """The value in the database's form."""
        if self._cipher is None:
            return value
        nonce = secrets.token_bytes(NONCE)
        return MARK + nonce + self._cipher.encrypt(nonce, value, f"{call}/{column}".encode())

    def open(self, value: bytes | None, call: str, column: str) -> bytes | None:
        """The plain value.

        Raises:
            UserError: it was changed, or belongs to another call.
        """
        if value is None or not bytes(value).startswith(MARK):
            return value  # from before there was a key
        if self._cipher is None:
            raise UserError("the database is encrypted", action="give the key with --encryption-key")
        value = bytes(value)
        try:
            return self._cipher.decrypt(value[1 : 1 + NONCE], value[1 + NONCE :], f"{call}/{column}".encode())
        except InvalidTag as error:
            raise UserError(f"call {call}: its {column} were changed", action="restore the database") from error


_ABOUT = "the database's data key"


def rewrap(records: Records, keys: MasterKeys) -> bool:
    """Wrap the database's data key with the current master key; False if that is done, or there is none."""
    with records.write() as connection:
        row = connection.execute(select(data_keys).where(data_keys.c.id == _LOG)).first()
        if row is None or row.master == keys.current:
            return False
        wrapped = keys.wrap(keys.unwrap(row.wrapped, row.master, _ABOUT), _ABOUT)
        new = {"wrapped": wrapped, "master": keys.current}
        connection.execute(update(data_keys).where(data_keys.c.id == _LOG).values(new))
    return True


def key_of(records: Records) -> str | None:
    """Id of the master key that wraps the database's data key; None without one."""
    with records.read() as connection:
        master: str | None = connection.scalar(select(data_keys.c.master).where(data_keys.c.id == _LOG))
    return master


def seal_all(records: Records, keys: MasterKeys) -> int:
    """Encrypt plain values; return how many calls had some."""
    values, count = Values(records, keys), 0
    with records.read() as connection:
        ids = connection.scalars(select(calls.c.id)).all()
    for id_ in ids:
        with records.write() as connection:
            row = connection.execute(select(calls).where(calls.c.id == id_)).one()
            plain = {
                name: values.seal(bytes(value), id_, name)
                for name in ("arguments", "result")
                if (value := getattr(row, name)) is not None and not bytes(value).startswith(MARK)
            }
            if plain:
                connection.execute(update(calls).where(calls.c.id == id_).values(plain))
                count += 1
    if records.engine.dialect.name == "sqlite":  # unused pages still hold the plain values
        with records.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM")
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    return count
