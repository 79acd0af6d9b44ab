"""What the book shows: tables, figures, the ledger of the paper's claims, parameters of notebooks, the Colab cell."""
