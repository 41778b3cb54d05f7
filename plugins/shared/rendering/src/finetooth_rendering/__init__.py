"""Common code of renderers: conversations as marked-up text and tokens."""
