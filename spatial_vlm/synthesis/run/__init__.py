"""One synthesis run: questions, journal, ledger, rate limit, batches."""
