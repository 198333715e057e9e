"""Who belongs to the cluster: its certificate authority, joining, renewal, and whether a peer is still welcome."""
