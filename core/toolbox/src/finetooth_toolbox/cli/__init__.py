"""Code that commands share: streams, options."""
