"""Exporters of folders that other tools load as they are."""
