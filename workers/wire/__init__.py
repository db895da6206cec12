"""The protocol between processes: frames, TLS, connections and channels. No torch."""
