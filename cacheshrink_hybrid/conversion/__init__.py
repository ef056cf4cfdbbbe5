"""From a source model to one that remembers less: fitted, planned, installed."""
