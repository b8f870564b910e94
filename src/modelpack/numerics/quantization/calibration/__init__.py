"""How large activations become on real rows: taps, histograms, and the ranges that rules take from them."""
