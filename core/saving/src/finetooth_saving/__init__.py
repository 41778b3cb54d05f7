"""Files of a run on disk: its folder, checkpoints, artifact, manifests and locks."""
