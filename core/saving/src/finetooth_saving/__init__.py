"""What a run leaves on disk: its folder, checkpoints, artifact, manifests and locks."""
