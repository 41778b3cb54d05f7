"""Information about runs from their folders, and code that trackers share."""
