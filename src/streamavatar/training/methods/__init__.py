"""One file per stage: what is trained, on what, with which loss."""
