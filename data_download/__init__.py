"""Get, check and prepare the data sets: ``python -m data_download {list,anatomies,oasis,rafd}``."""
