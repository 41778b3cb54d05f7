"""Encryption at rest: master keys, folders of files, and values in the database."""
