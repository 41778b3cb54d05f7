"""Worker processes for functions that may raise, hang, or end their process."""
