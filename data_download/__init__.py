"""Where the data come from: ``python -m data_download list``."""
