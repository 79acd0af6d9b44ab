"""What the book shows: tables, figures, the ledger of claims, parameters of notebooks, the Colab cell."""
