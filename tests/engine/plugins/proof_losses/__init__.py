"""Two losses unlike cross entropy, which prove the losses' contract: DPO over pairs, BCO over the whole step."""
