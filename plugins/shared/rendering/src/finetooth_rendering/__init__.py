"""Conversations as marked-up text and tokens: what renderers share."""
