"""Files and folders: names, manifests, locks, packed content."""
