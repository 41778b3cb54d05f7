"""Everything that trains: in memory, on disk, and checked before it is taken back."""
