"""Registration networks: each maps an image pair to a displacement and, if it predicts one, a velocity."""
