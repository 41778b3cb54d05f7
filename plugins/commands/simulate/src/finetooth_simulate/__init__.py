"""`ft simulate`: what a run over several islands would send."""
