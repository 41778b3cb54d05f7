"""Fetches files of rows from the web and from object stores, once."""
