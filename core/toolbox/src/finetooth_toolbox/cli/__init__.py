"""What commands share: streams, options."""
