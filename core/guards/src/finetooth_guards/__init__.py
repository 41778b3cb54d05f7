"""What plugins return is checked where it crosses to the core; the plugin at fault is named."""
