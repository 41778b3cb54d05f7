"""OFT, BOFT, VeRA and (IA)3 through peft."""
