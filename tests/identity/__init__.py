"""Who and which: what a request says about its owner and its conversation."""
