"""One file per policy, all over the same simulated fleet; `catalogue` names them."""
