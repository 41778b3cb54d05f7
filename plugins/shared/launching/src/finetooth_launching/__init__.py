"""Common code of launchers: starts ranks as processes, and waits for them."""
