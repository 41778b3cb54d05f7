"""Explaining, checking and beginning plugins."""
