"""Reads CSV, TSV, Parquet, Arrow and JSON files, a portion at a time."""
