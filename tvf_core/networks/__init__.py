"""The networks: image pair in, displacement and velocity out."""
