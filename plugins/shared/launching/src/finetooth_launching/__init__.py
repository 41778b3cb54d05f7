"""What launchers share: processes that are ranks, and waiting for them."""
