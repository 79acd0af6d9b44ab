"""Methods that optimise every pair anew, without a network."""
